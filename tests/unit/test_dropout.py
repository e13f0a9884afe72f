"""Dropout with cheap masks: shares, gradients, attention against its plain formula."""

from __future__ import annotations

import pytest
import torch

from poiesis.nn import dropout as drops
from poiesis.nn.dropout import Dropout, add_dropped, causal_attention, dropout


def test_drops_the_share_and_keeps_the_mean():
    torch.manual_seed(0)
    y = dropout(torch.ones(1_000_003), 0.2)
    assert (y == 0).float().mean().item() == pytest.approx(0.2, abs=0.003)
    assert y.mean().item() == pytest.approx(1, abs=0.003)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1.25), atol=1e-4, rtol=0)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    keep = dropout(torch.ones(1_000_000), 0.5) > 0
    for distance in (1, 2, 3, 4, 8):
        same = (keep[distance:] == keep[:-distance]).float().mean().item()
        assert same == pytest.approx(0.5, abs=0.003)


def test_masks_follow_the_global_seed_alone():
    x = torch.randn(7, 13)
    torch.manual_seed(3)
    first = dropout(x, 0.4)
    other = dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_the_ends_of_the_range(p):
    x = torch.randn(64)
    expected = torch.zeros(64) if p == 1 else x
    torch.testing.assert_close(dropout(x, p), expected)
    torch.testing.assert_close(add_dropped(x, x, p), x + expected)


def test_evaluation_drops_nothing():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(add_dropped(x, x, 0.5, training=False), 2 * x)


def test_gradients_pass_where_values_did():
    x = torch.randn(40, 50, requires_grad=True)
    branch = torch.randn(40, 50, requires_grad=True)
    torch.manual_seed(1)
    alone = dropout(branch, 0.3)
    torch.manual_seed(1)
    joined = add_dropped(x, branch, 0.3)
    torch.testing.assert_close(joined, x + alone)
    weight = torch.randn(40, 50)
    dx, d_branch = torch.autograd.grad(joined, (x, branch), weight)
    assert torch.equal(dx, weight)
    torch.testing.assert_close(d_branch * branch, (joined - x) * weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 128, 300])
def test_attention_is_the_formula_with_the_same_masks(length):
    p, b, h, e = 0.3, 2, 3, 8
    qkv = torch.randn(b, length, 3, h, e, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    ours = causal_attention(qkv, p)
    torch.manual_seed(5)
    mask = torch.zeros(b, h, length, length, dtype=torch.float64)
    for row in range(b):
        for start in range(0, length, 128):
            end = min(length, start + 128)
            mask[row, :, start:end, :end] = drops._keep((h, end - start, end), p)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    future = torch.ones(length, length).triu(1).bool()
    weights = (q @ k.mT * e**-0.5).masked_fill(future, -torch.inf).softmax(-1)
    plain = ((weights * mask * drops._scale(p)) @ v).transpose(1, 2)
    torch.testing.assert_close(ours, plain)
    weight = torch.randn_like(plain)
    found, expected = (torch.autograd.grad(y, qkv, weight)[0] for y in (ours, plain))
    torch.testing.assert_close(found, expected)
