"""Vectors and audio: generated against real rows in features that need no network."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import AudioCodec, VectorCodec
from poiesis.data.codecs.audio import log_spectrogram
from poiesis.evaluation.images import check_counts, neighbourhood_numbers
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import fid

__all__ = ["BANDS", "evaluate_values", "value_features"]

BANDS = 32
"""Bands of frequency in the features of audio."""
_SILENCE = -60.0


def value_features(native: Tensor, codec: VectorCodec | AudioCodec) -> Tensor:
    """Return what native rows are compared by, float64 (n, features).

    Vectors: their columns, standardised by the training part's mean and spread. Audio (n, 1, t):
    the power in 32 bands of frequency in dB, its mean and its spread over time; below -60 dB, where
    the training part's RMS is about 0, all counts as silence.
    """
    if isinstance(codec, VectorCodec):
        return native.flatten(1).double()
    levels = np.maximum(log_spectrogram(native[:, 0].numpy()), _SILENCE)
    bands = np.array_split(levels, BANDS, axis=1)
    power = np.stack([band.mean(1) for band in bands], 1)
    return torch.from_numpy(np.concatenate([power.mean(2), power.std(2)], 1))


def evaluate_values(
    generated: Tensor,
    real: Tensor,
    codec: VectorCodec | AudioCodec,
    *,
    data: str,
    variant: str,
    split: str,
    seed: int = 0,
) -> list[Number]:
    """Return the Fréchet distance, precision, recall, density and coverage of native rows (n, …).

    In `value_features`; the hash in the passport is that of the codec, so that numbers of columns
    that were standardised in another way are not compared. Raises DataError for too few rows.
    """
    check_counts(generated, real, "samples")
    fake, true = (value_features(rows, codec) for rows in (generated, real))
    is_vector = isinstance(codec, VectorCodec)
    digest = hashlib.sha256(json.dumps(codec.to_json(), sort_keys=True).encode()).hexdigest()

    def passport(**settings: int | float | str) -> Passport:
        return Passport(
            extractor="standardised columns" if is_vector else f"log power in {BANDS} bands",
            sha256=digest,
            dtype="float64",
            data=data,
            variant=variant,
            split=split,
            n_real=len(real),
            n_generated=len(generated),
            seed=seed,
            settings=settings,
        )

    distance = Number.of("frechet_distance", fid(true, fake), passport(), higher_is_better=False)
    return [distance, *neighbourhood_numbers(true, fake, passport)]
