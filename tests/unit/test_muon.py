"""Muon against singular value decompositions and the textbook iteration in float64."""

import pytest
import torch

from poiesis.training.muon import Muon, orthogonalize


def textbook(x):
    """The quintic Newton-Schulz iteration on the whole matrix, float64 (Jordan 2024)."""
    x = x.double() / x.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalize_is_the_quintic_iteration(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    y = orthogonalize(x)
    for row, given in zip(y, x, strict=True):
        wide = given if shape[0] <= shape[1] else given.T
        expected = textbook(wide)
        expected = expected if shape[0] <= shape[1] else expected.T
        torch.testing.assert_close(row.double(), expected, atol=1e-3, rtol=1e-3)


def test_singular_values_come_near_one_and_vectors_stay():
    u, _, vh = torch.linalg.svd(torch.randn(24, 64, generator=torch.Generator().manual_seed(1)))
    s = torch.logspace(0, -1.5, 24)
    y = orthogonalize((u @ torch.diag(s) @ vh[:24])[None])[0]
    values = torch.diag(u.T @ y @ vh[:24].T)
    assert values.min() > 0.6 and values.max() < 1.3
    off = u.T @ y @ vh[:24].T - torch.diag(values)
    assert off.abs().max() < 1e-3


def test_step_size_is_the_learning_rate_in_spectral_norm():
    w = torch.nn.Parameter(torch.zeros(64, 16))
    w.grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    Muon([w], lr=0.1).step()
    scale = (64 / 16) ** 0.5
    assert torch.linalg.matrix_norm(w.detach(), 2) == pytest.approx(0.1 * scale, rel=0.3)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(4))])
