"""What likelihood does not see in generated text: does it repeat itself, does it copy?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate, mean_estimate

__all__ = ["novelty", "repetition"]


def repetition(texts: Sequence[str], *, n: int = 4) -> Estimate:
    """Return the mean share of each text's word n-grams that occurred in it before, in [0, 1].

    Lower is better; real prose is near 0 (seq-rep-n of Welleck et al. 2019, 1908.04319).
    Texts of fewer than n words are left out. Raises DataError if none is longer, ConfigError.
    """
    grams = _all_grams(texts, n)
    return mean_estimate([1 - len(set(g)) / len(g) for g in grams], low=0, high=1)


def novelty(texts: Sequence[str], training: Iterable[str], *, n: int = 4) -> Estimate:
    """Return the mean share of each text's word n-grams that the training texts don't hold.

    Between 0 (copied) and 1; neither end is good: compare with held-out text. Raises DataError,
    ConfigError.
    """
    grams = _all_grams(texts, n)
    unseen = set().union(*grams)
    for text in training:
        unseen.difference_update(_grams(text, n))
    return mean_estimate([sum(x in unseen for x in g) / len(g) for g in grams], low=0, high=1)


def _all_grams(texts: Sequence[str], n: int) -> list[list[tuple[str, ...]]]:
    check("n", n, low=1)
    grams = [g for g in (_grams(text, n) for text in texts) if g]
    if not grams:
        raise DataError(f"none of {len(texts)} texts has {n} words: generate longer texts")
    return grams


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))
