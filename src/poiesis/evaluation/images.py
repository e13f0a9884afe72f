"""Image quality and variety: generated against real images in an extractor's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poiesis import processes
from poiesis.data.dataset import DataSet
from poiesis.errors import DataError
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import (
    density_coverage,
    expected_coverage,
    fid,
    inception_score,
    kid,
    precision_recall,
)
from poiesis.metrics.extractors import Extractor
from poiesis.metrics.features import default_extractor, match_levels
from poiesis.metrics.fidelity import SMALLEST, psnr, ssim
from poiesis.spec import Grid

__all__ = [
    "check_counts",
    "default_extractor",
    "draw_reference",
    "evaluate_images",
    "evaluate_pairs",
    "match_levels",
    "neighbourhood_numbers",
]

_NEIGHBOURS, _BALLS, _SPLITS, _SUBSETS, _SUBSET = 3, 5, 10, 100, 1000


def evaluate_images(
    generated: Tensor,
    real: Tensor,
    extractor: Extractor,
    *,
    data: str,
    variant: str,
    split: str,
    levels: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Number]:
    """Return FID, KID, Inception Score (of classifiers), precision, recall, density, coverage.

    generated, real: uint8 (n, c, h, w) in the data set's native levels 0…levels-1. progress is
    called with the size of each batch of features. Raises DataError for images the extractor does
    not take or too few of them.
    """
    factor = 1
    if levels != extractor.levels:
        generated = match_levels(generated, levels, extractor.levels)
        real = match_levels(real, levels, extractor.levels)
        factor = (extractor.levels - 1) // (levels - 1)
    check_counts(generated, real, "images")
    # Each process looks at its part of the images; the main one compares.
    fake, true = (
        processes.gather(
            extractor.features(images[slice(*processes.share(len(images), 250))], progress=progress)
        )
        for images in (generated, real)
    )

    def passport(**settings: int | float | str) -> Passport:
        if factor != 1:
            settings["levels_scaled_by"] = factor
        return Passport(
            extractor=extractor.name,
            sha256=extractor.sha256,
            layer=extractor.layer,
            resizer=extractor.resizer,
            dtype=f"{extractor.dtype} features, float64 metric",
            data=data,
            variant=variant,
            split=split,
            n_real=len(real),
            n_generated=len(generated),
            seed=seed,
            settings=settings,
        )

    subset = {"subsets": _SUBSETS, "subset_size": _SUBSET}
    numbers = [
        Number.of("fid", fid(true, fake), passport(), higher_is_better=False),
        Number.of(
            "kid", kid(true, fake, seed=seed, **subset), passport(**subset), higher_is_better=False
        ),
    ]
    if extractor.classes:
        score = inception_score(extractor.head(fake), splits=_SPLITS, seed=seed)
        about = passport(splits=_SPLITS)
        numbers.append(Number.of("inception_score", score, about, higher_is_better=True))
    return [*numbers, *neighbourhood_numbers(true, fake, passport)]


def evaluate_pairs(
    generated: Tensor,
    plain: Tensor,
    real: Tensor,
    data: DataSet,
    *,
    split: str,
    plainly: str,
    seed: int = 0,
) -> list[Number]:
    """Return PSNR and SSIM of images against the very ones they should be, and of plain ones.

    generated, plain, real: native rows (n, c, h, w). plain: what one would make without a model,
    plainly: what that is, for the passport. SSIM is left out for images below 11 px.
    """
    assert isinstance(data.spec, Grid)
    peak = data.spec.levels - 1
    numbers = []
    for suffix, rows, how in (("", generated, "model"), ("_plain", plain, plainly)):
        about = Passport(
            data=data.name,
            variant=data.variant,
            split=split,
            n_real=len(real),
            n_generated=len(rows),
            seed=seed,
            settings={"made_by": how},
        )
        found = psnr(rows, real, peak=peak)
        numbers.append(Number.of(f"psnr{suffix}", found, about, higher_is_better=True, unit="dB"))
        if min(real.shape[2:]) >= SMALLEST:
            found = ssim(rows, real, peak=peak)
            numbers.append(Number.of(f"ssim{suffix}", found, about, higher_is_better=True))
    return numbers


def check_counts(generated: Tensor, real: Tensor, what: str) -> None:
    """Raise DataError if there are too few samples to judge."""
    for name, rows in (("generated", generated), ("real", real)):
        if len(rows) < max(_BALLS + 1, _SPLITS):
            raise DataError(f"{len(rows)} {name} {what}: judging needs at least {_SPLITS}")


def neighbourhood_numbers(
    true: Tensor, fake: Tensor, passport: Callable[..., Passport]
) -> list[Number]:
    """Return precision, recall, density and coverage of features (n, d), (m, d).

    passport: takes a number's own settings.
    """
    numbers = []
    pair = precision_recall(true, fake, k=_NEIGHBOURS)
    for name, estimate in zip(("precision", "recall"), pair, strict=True):
        numbers.append(Number.of(name, estimate, passport(k=_NEIGHBOURS), higher_is_better=True))
    expected = {"density": 1.0, "coverage": expected_coverage(len(true), len(fake), _BALLS)}
    pair = density_coverage(true, fake, k=_BALLS)
    for name, estimate in zip(expected, pair, strict=True):
        about = passport(k=_BALLS, of_equal_distributions=round(expected[name], 4))
        numbers.append(Number.of(name, estimate, about, higher_is_better=True))
    return numbers


def draw_reference(images: Tensor, n: int, seed: int) -> Tensor:
    """Return n of the images, drawn without replacement by seed; all of them where n is larger."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:n]]
