"""Numbers of vectors and sound against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from poiesis.data.codecs import AudioCodec, VectorCodec
from poiesis.errors import DataError
from poiesis.evaluation.passport import PassportMismatch, compare_numbers
from poiesis.evaluation.values import BANDS, evaluate_values, value_features

COLUMNS = VectorCodec(
    columns=("a", "b", "c"), mean=(5.0, 0.0, 1.0), std=(2.0, 1.0, 3.0), decimals=(6, 6, 6)
)
SOUND = AudioCodec(rate=8000, length=1024, scale=3000.0)


def numbers(generated, real, codec=COLUMNS):
    found = evaluate_values(
        generated, real, codec, data="x", variant="x, all columns", split="test"
    )
    return {number.name: number for number in found}


def normal(n, seed, dims=3):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_shifted_and_scaled_columns():
    real = normal(4000, 0)
    same = numbers(normal(4000, 1), real)
    assert same["frechet_distance"].value == pytest.approx(0, abs=0.01)
    assert same["precision"].value > 0.9 and same["density"].value == pytest.approx(1, abs=0.1)
    # |mean|² + (1 - spread)² of each column: 3 * 0.5² and 3 * 0.5².
    moved = numbers(normal(4000, 1) * 0.5 + 0.5, real)["frechet_distance"]
    assert moved.value == pytest.approx(1.5, abs=0.08)
    assert compare_numbers(same["frechet_distance"], moved) == "first"
    assert same["frechet_distance"].passport.extractor == "standardised columns"


def test_shapes_that_share_mean_and_covariance_differ_in_the_other_numbers():
    angle = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * math.tau
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros(2000)], 1) * math.sqrt(2)
    cloud = torch.cat([normal(2000, 2)[:, :2], torch.zeros(2000, 1)], 1)
    found = numbers(cloud, ring)
    assert found["frechet_distance"].value < 0.02
    assert found["precision"].value < 0.2


def test_columns_that_are_standardised_otherwise_are_not_compared():
    other = VectorCodec(
        columns=COLUMNS.columns, mean=COLUMNS.mean, std=(2.0, 1.0, 4.0), decimals=(6, 6, 6)
    )
    pair = [numbers(normal(50, 0), normal(50, 1), codec) for codec in (COLUMNS, other)]
    with pytest.raises(PassportMismatch, match="sha256"):
        compare_numbers(*(found["frechet_distance"] for found in pair))
    with pytest.raises(DataError, match="9 generated samples: judging needs at least 10"):
        numbers(normal(9, 0), normal(50, 1))


def test_sound_is_compared_by_loudness_in_bands():
    noise = torch.randn(200, 1, 1024, generator=torch.Generator().manual_seed(0))
    features = value_features(noise, SOUND)
    assert features.shape == (200, 2 * BANDS)
    louder = value_features(10 * noise, SOUND)
    gain = louder[:, :BANDS] - features[:, :BANDS]
    # A value or two lies below what counts as silence.
    torch.testing.assert_close(gain, torch.full_like(gain, 20), atol=0.5, rtol=0)
    assert float(gain.mean()) == pytest.approx(20, abs=0.001)
    torch.testing.assert_close(louder[:, BANDS:], features[:, BANDS:], atol=2, rtol=0)
    assert (value_features(0 * noise, SOUND)[:, :BANDS] == -60).all()
    found = numbers(10 * noise, noise, SOUND)
    assert found["frechet_distance"].value == pytest.approx(BANDS * 400, rel=0.01)
    assert found["recall"].value == 0
    # Not by phase: another draw of the same noise is the same sound.
    again = torch.randn(200, 1, 1024, generator=torch.Generator().manual_seed(1))
    assert numbers(again, noise, SOUND)["precision"].value > 0.5
    assert numbers(again, noise, SOUND)["frechet_distance"].value < 0.01 * BANDS * 400
    assert np.isfinite(features.numpy()).all()
