"""What samples of each modality are compared by: features of native rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import AudioCodec, SpectrogramCodec, VectorCodec
from poiesis.data.codecs.audio import log_spectrogram
from poiesis.data.dataset import DataSet
from poiesis.errors import DataError
from poiesis.metrics.extractors import CLASSIFIERS, Extractor, get_extractor
from poiesis.spec import Grid

__all__ = [
    "BANDS",
    "MOMENTS",
    "clip_features",
    "default_extractor",
    "features_of",
    "match_levels",
    "motion",
    "quick_features",
    "value_features",
]

BANDS = 32
"""Bands of frequency in the features of audio."""
MOMENTS = 4
"""Frames of a clip, spread evenly, that its features are means over."""
_SILENCE = -60.0
_RELATED = {"cifar10": "cifar10-jpeg", "cifar10-partial": "cifar10-jpeg"}


def default_extractor(data: str, spec: Grid) -> Extractor:
    """Return the classifier of a data set where its images fit it, else random features."""
    name = _RELATED.get(data, data)
    if name in CLASSIFIERS:
        own = get_extractor(name)
        fits = (own.levels - 1) % (spec.levels - 1) == 0
        if fits and getattr(own, "shape", None) == spec.shape:
            return own
    return get_extractor("random", levels=spec.levels)


def match_levels(images: Tensor, levels: int, target: int) -> Tensor:
    """Scale uint8 images of `levels` levels to `target` levels; raises DataError if uneven."""
    factor, rest = divmod(target - 1, levels - 1)
    if rest:
        raise DataError(
            f"images of {levels} levels don't map evenly to the extractor's {target}: "
            "use --extractor random or inception"
        )
    return images * factor


def value_features(native: Tensor, codec: VectorCodec | AudioCodec) -> Tensor:
    """Return what native rows are compared by, float64 (n, features).

    Vectors: their columns, standardised by the training part's mean and spread. Audio, also where
    it was learned as spectrograms (which are made into sound): the power in 32 bands of frequency
    in dB, its mean and its spread over time; below -60 dB, where the training part's RMS is about
    0, all counts as silence.
    """
    if isinstance(codec, VectorCodec):
        return native.flatten(1).double()
    return _over_time(np.maximum(log_spectrogram(codec.waves(native).numpy()), _SILENCE))


def quick_features(native: Tensor, codec: VectorCodec | AudioCodec) -> Tensor:
    """Return `value_features`, of spectrograms by their own bands, which needs no sound of them."""
    if isinstance(codec, SpectrogramCodec):
        return _over_time(codec.decibels(native)[:, 0].numpy())
    return value_features(native, codec)


def _over_time(levels: np.ndarray) -> Tensor:
    """Return mean and spread over time of levels (n, bands, t), averaged to 32 bands or fewer."""
    bands = np.array_split(levels, min(BANDS, levels.shape[1]), axis=1)
    power = np.stack([band.mean(1) for band in bands], 1)
    return torch.from_numpy(np.concatenate([power.mean(2), power.std(2)], 1))


def motion(before: Tensor, after: Tensor) -> Tensor:
    """Return what changes from uint8 frames to the next ones, as uint8 frames of any one shape.

    Half of the difference around the middle of 256 levels: 127 where nothing changes.
    """
    return ((after.int() - before.int() + 255) // 2).to(torch.uint8)


def clip_features(native: Tensor, extractor: Extractor) -> Tensor:
    """Return what clips (n, c, t, h, w) are compared by, (n, 2 * extractor.dims).

    The means over `MOMENTS` frames, spread evenly, of the features of these frames, and of those of
    their `motion` to the next frame.
    """
    last = native.shape[2] - 2
    first = torch.linspace(0, last, min(MOMENTS, last + 1)).round().long()
    before, after = native[:, :, first], native[:, :, first + 1]
    rows = []
    for clips in (before, motion(before, after)):
        found = extractor.features(clips.transpose(1, 2).flatten(0, 1))
        rows.append(found.unflatten(0, (len(native), len(first))).mean(1))
    return torch.cat(rows, 1)


def features_of(
    data: DataSet, device: torch.device | str = "cpu"
) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """Return (name of the features, native rows (n, …) to features (n, d)) of a data set.

    None where its rows have no features of ours: text, and images that no extractor takes.
    """
    codec, spec = data.codec, data.spec
    if isinstance(codec, VectorCodec | AudioCodec):
        name = "columns" if isinstance(codec, VectorCodec) else "spectra"
        return name, lambda rows: quick_features(rows, codec)
    if not isinstance(spec, Grid) or not 1 <= spec.channels <= 4 or min(spec.size[-2:]) < 4:
        return None
    extractor = default_extractor(data.name, spec).to(device)
    scaled = extractor.levels if extractor.levels != spec.levels else 0
    moving = len(spec.size) == 3

    def features(rows: Tensor) -> Tensor:
        rows = match_levels(rows, spec.levels, scaled) if scaled else rows
        return (clip_features(rows, extractor) if moving else extractor.features(rows)).double()

    return f"{extractor.name} features", features
