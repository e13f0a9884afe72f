"""Anomaly scores, each fitted to the observations of normal training images; higher is stranger.

The combined score is a sum of logarithms, each over its spread on the training images. It takes a
score from each place where an anomaly can show, and none is chosen by how well it does:

- how the image looks (features);
- what the model fails to bring back (reconstruction, seen by the extractor and by the encoder);
- where its code lies among those of training images (latent-neighbours);
- for models that neither encode nor reconstruct: their likelihood or discriminator instead.

Left out are scores that say the same less well for a known reason: squared errors of pixels and
raw likelihoods, which follow an image's complexity (Nalisnick et al., arXiv:1810.09136), and the
one Gaussian of latent-distance where neighbours follow any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poiesis.apply.detect.observe import Observations

__all__ = ["COMBINED", "SCORES", "Fitted", "Score", "fit_scores"]

Values = NDArray[np.float64]
Measure = Callable[[Observations], Values]

COMBINED = "combined"
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Score:
    """A score: the observation it needs, and fit(training observation) → (own values, measure).

    The own values are those of the training images, of each as if it were not among them where
    that matters.
    """

    name: str
    needs: str
    what: str
    fit: Callable[[Values], tuple[Values, Callable[[Values], Values]]]
    positive: bool = True
    """A distance, compared by its logarithm; else any number, compared as it is."""


def _itself(train: Values) -> tuple[Values, Callable[[Values], Values]]:
    return train, lambda x: x


def _gaussian(train: Values) -> tuple[Values, Callable[[Values], Values]]:
    """Return the squared Mahalanobis distance; the covariance shrunk by Ledoit and Wolf's rule."""
    from sklearn.covariance import LedoitWolf

    if not train.std(0).any():
        return np.zeros(len(train)), lambda x: np.square(x - train[0]).sum(1)
    fitted = LedoitWolf().fit(train)
    return fitted.mahalanobis(train), fitted.mahalanobis


def _neighbours(train: Values) -> tuple[Values, Callable[[Values], Values]]:
    """Return the mean distance to the nearest training rows, after whitening."""
    from sklearn.covariance import LedoitWolf
    from sklearn.neighbors import NearestNeighbors

    if not train.std(0).any():
        return np.zeros(len(train)), lambda x: np.sqrt(np.square(x - train[0]).sum(1))
    fitted = LedoitWolf().fit(train)
    values, vectors = np.linalg.eigh(np.asarray(fitted.get_precision()))
    whiten = vectors * np.sqrt(values.clip(min=0))
    k = min(_NEIGHBOURS, len(train) - 1)
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train @ whiten)
    return (
        index.kneighbors()[0].mean(1),
        lambda x: index.kneighbors(x @ whiten)[0].mean(1),
    )


SCORES: tuple[Score, ...] = (
    Score(
        "features",
        "features",
        "Mahalanobis distance of the image's random features; needs no model",
        _gaussian,
    ),
    Score("reconstruction", "pixels", "mean squared error of the reconstruction", _itself),
    Score(
        "reconstruction-features",
        "features_error",
        "Mahalanobis distance of what a reconstruction changes in the random features",
        _gaussian,
    ),
    Score(
        "reconstruction-code",
        "code_error",
        "Mahalanobis distance of what a reconstruction changes in the code",
        _gaussian,
    ),
    Score("latent-distance", "code", "Mahalanobis distance of the code", _gaussian),
    Score(
        "latent-neighbours",
        "code",
        f"mean distance of the whitened code to the {_NEIGHBOURS} nearest of training",
        _neighbours,
    ),
    Score("likelihood", "nats", "-log p in nats, or its bound", _itself, False),
    Score(
        "complexity",
        "excess_bits",
        "bits by the model, less the bits of a lossless WebP",
        _itself,
        False,
    ),
    Score("discriminator", "fake", "minus the discriminator's logit", _itself, False),
)

_GEOMETRY = ("features", "reconstruction-features", "reconstruction-code", "latent-neighbours")
_OTHERWISE = ("features", "complexity", "discriminator")


@dataclass(frozen=True)
class Fitted:
    """Scores fitted to training images."""

    measures: dict[str, Measure]
    members: tuple[str, ...]
    """Scores that the combined one is made of."""

    def __call__(self, observations: Observations) -> dict[str, Values]:
        """Return score name → values (n,), float64."""
        return {name: measure(observations) for name, measure in self.measures.items()}


def fit_scores(train: Observations) -> Fitted:
    """Fit every score that the observations of training images allow, and the combined one."""
    measures: dict[str, Measure] = {}
    levels: dict[str, Measure] = {}
    for score in SCORES:
        if score.needs in train:
            measures[score.name], levels[score.name] = _fit(score, train)
    members = [name for name in _GEOMETRY if name in measures]
    if len(members) < 2:
        members = [name for name in _OTHERWISE if name in measures]
    members = [name for name in members if name in levels]
    if len(members) > 1:
        measures = {COMBINED: _sum([levels[name] for name in members]), **measures}
    return Fitted(measures, tuple(members))


def _fit(score: Score, train: Observations) -> tuple[Measure, Measure]:
    """Return a score, and its logarithm (if it is a distance) over its spread in training."""
    own, measure = score.fit(train[score.needs].numpy())
    # Distances of copies are 0; so small a share of the usual distance is as good as that.
    least = 1e-9 * float(np.median(own)) + 1e-300

    def level(values: Values) -> Values:
        return np.log(np.maximum(values, least)) if score.positive else values

    spread = float(level(own).std()) or 1.0

    def plain(observations: Observations) -> Values:
        return measure(observations[score.needs].numpy())

    return plain, lambda observations: level(plain(observations)) / spread


def _sum(levels: Sequence[Measure]) -> Measure:
    return lambda observations: np.sum([level(observations) for level in levels], axis=0)
