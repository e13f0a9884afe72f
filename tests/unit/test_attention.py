"""Attention by plain products, where they are faster, against PyTorch's in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poiesis.nn.attention import attend


def gradients(attention, parts: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Return the output and the gradients of its weighted sum, in double precision."""
    leaves = [part.clone().requires_grad_() for part in parts]
    out = attention(*leaves, mask)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    (out.double() * weights).sum().backward()
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [9, 600])
def test_attention_in_bfloat16_is_as_exact_as_the_fused_kernel(masked: bool, keys: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, n, 16).bfloat16() for n in (25, keys, keys)]
    mask = None
    if masked:
        mask = torch.rand(2, 1, 1, keys) < 0.5
        mask[..., 0] = True
    exact = gradients(fused, [part.double() for part in parts], mask)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(attend, parts, mask)
        theirs = gradients(fused, parts, mask)
    for right, own, other in zip(exact, ours, theirs, strict=True):
        size = right.abs().max()
        assert (own - right).abs().max() <= max(2 * (other - right).abs().max(), 0.01 * size)


def test_attention_has_second_derivatives() -> None:
    parts = [torch.randn(1, 1, 4, 2).bfloat16().requires_grad_() for _ in range(3)]
    (slope,) = torch.autograd.grad(attend(*parts).square().sum(), parts[0], create_graph=True)
    slope.float().square().sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts)
