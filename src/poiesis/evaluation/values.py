"""Vectors and audio: generated against real rows in features that need no network."""

from __future__ import annotations

import hashlib
import json

from torch import Tensor

from poiesis.data.codecs import AudioCodec, VectorCodec
from poiesis.evaluation.images import check_counts, neighbourhood_numbers
from poiesis.evaluation.passport import Number, Passport
from poiesis.metrics import fid
from poiesis.metrics.features import BANDS, value_features

__all__ = ["BANDS", "evaluate_values", "value_features"]


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
