"""Video: generated against real clips, by single frames, by what changes, and by both together.

Of each clip one frame, and one pair of frames next to each other, is drawn by seed and looked at in
the features of images; so no two of the rows compared are of one clip, and intervals are honest.
This is no Fréchet video distance (arXiv:1812.01717): that needs a network trained on videos.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poiesis import processes
from poiesis.evaluation.images import check_counts, neighbourhood_numbers
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import fid
from poiesis.metrics.extractors import Extractor
from poiesis.metrics.features import MOMENTS, clip_features, match_levels, motion
from poiesis.rng import generator

__all__ = ["evaluate_videos"]


def evaluate_videos(
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
    """Return frame FID, motion FID, and precision, recall, density and coverage of clips.

    generated, real: uint8 (n, c, t, h, w). Frame FID is that of single frames: what order they come
    in is nothing to it. Motion FID is that of differences of neighbouring frames, made grey where
    nothing changes: shuffled or frozen clips are far from real ones. Precision and the others
    compare clips by the means over time of both kinds of features (`clip_features`). progress is
    called with the number of clips done. Raises DataError for too few clips, or frames that the
    extractor does not take.
    """
    check_counts(generated, real, "clips")
    if levels != extractor.levels:
        generated = match_levels(generated, levels, extractor.levels)
        real = match_levels(real, levels, extractor.levels)

    def whole(clips: Tensor) -> Tensor:
        parts = []
        for some in clips[slice(*processes.share(len(clips), 32))].split(32):
            parts.append(clip_features(some, extractor))
            if progress is not None:
                progress(len(some))
        return processes.gather(torch.cat(parts) if parts else torch.empty(0, 2 * extractor.dims))

    def passport(**settings: int | float | str) -> Passport:
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

    numbers = []
    kinds = {"frame_fid": _one_frame, "motion_fid": _one_difference}
    for name, pick in kinds.items():
        true, fake = (
            extractor.features(pick(clips, f"{name} {kind}", seed))
            for kind, clips in (("real", real), ("generated", generated))
        )
        numbers.append(Number.of(name, fid(true, fake), passport(), higher_is_better=False))
    true, fake = whole(real), whole(generated)
    return [
        *numbers,
        *neighbourhood_numbers(true, fake, lambda **more: passport(moments=MOMENTS, **more)),
    ]


def _one_frame(clips: Tensor, key: str, seed: int) -> Tensor:
    """Return one frame of each clip, (n, c, h, w)."""
    rows = torch.arange(len(clips))
    return clips[rows, :, _drawn(len(clips), clips.shape[2], key, seed)]


def _one_difference(clips: Tensor, key: str, seed: int) -> Tensor:
    """Return how one frame of each clip differs from the next, as a picture (n, c, h, w)."""
    rows = torch.arange(len(clips))
    first = _drawn(len(clips), clips.shape[2] - 1, key, seed)
    return motion(clips[rows, :, first], clips[rows, :, first + 1])


def _drawn(n: int, high: int, key: str, seed: int) -> Tensor:
    return torch.randint(high, (n,), generator=generator(key, seed))
