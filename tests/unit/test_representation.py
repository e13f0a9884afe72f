"""Metrics of codes: probes, clusters, sparsity, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from poiesis.data import open_data
from poiesis.errors import DataError
from poiesis.metrics.representation import (
    active_units,
    cluster_purity,
    hoyer_sparsity,
    linear_probe,
)


def blobs(n: int = 300, apart: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return rng.normal(size=(n, 4)) + apart * np.eye(4)[y], y


def test_blobs_that_lie_apart_are_told_apart():
    x, y = blobs()
    assert linear_probe(x, y).value == 1
    assert cluster_purity(x, y).value == 1
    assert cluster_purity(x, y, clusters=1).value == pytest.approx(1 / 3)


def test_labels_without_meaning_are_guessed():
    x, _ = blobs()
    y = np.random.default_rng(1).integers(0, 3, 300)
    assert linear_probe(x, y).value == pytest.approx(1 / 3, abs=0.09)
    # The most frequent class of a cluster is picked after the fact: a little above a third.
    assert 1 / 3 < cluster_purity(x, y).value < 0.45


def test_principal_components_of_digits():
    data = open_data("digits")
    x, y = data.splits["train"].fetch(torch.arange(600))
    codes = PCA(16).fit_transform(x.flatten(1).numpy())
    assert 0.92 < linear_probe(codes, y).value < 0.99
    low, high = linear_probe(codes, y).interval()
    assert low < linear_probe(codes, y).value < high
    assert linear_probe(codes[:, :2], y).value < 0.75
    assert 0.6 < cluster_purity(codes, y).value < 0.9


def test_sparsity():
    assert hoyer_sparsity(np.eye(5)).value == pytest.approx(1)
    assert hoyer_sparsity(np.ones((3, 5))).value == pytest.approx(0)
    assert hoyer_sparsity(np.zeros((3, 5))).value == 1
    # Half of four values on: (2 - 2 / sqrt(2)) / (2 - 1).
    assert hoyer_sparsity([[1.0, 1, 0, 0], [0, -2, 0, 2]]).value == pytest.approx(2 - 2**0.5)


def test_active_units():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(1000, 4)) * [1, 0.2, 0.05, 0]
    assert active_units(means) == 2
    assert active_units(means, threshold=1e-4) == 3


def test_what_cannot_be_judged_says_why():
    x, y = blobs(9)
    with pytest.raises(DataError, match="two classes with 5 samples each"):
        linear_probe(x, y)
    with pytest.raises(DataError, match="3 clusters need as many samples"):
        cluster_purity(x[:2], y[:2], clusters=3)
    with pytest.raises(DataError, match="one dimension"):
        hoyer_sparsity(np.ones((3, 1)))
