"""Group normalisation in bf16 with channels last, against torch's own in float64."""

import pytest
import torch

from poiesis.nn.group_norm import GroupNorm


@pytest.mark.parametrize(
    "shape", [(3, 64, 32, 32), (5, 128, 6, 7), (2, 512, 4, 4), (2, 64, 33, 31)]
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_both_passes_equal_torchs_in_double_precision(shape, layout):
    source = torch.Generator().manual_seed(0)
    ours = GroupNorm(32, shape[1])
    theirs = torch.nn.GroupNorm(32, shape[1], dtype=torch.float64)
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            layer.bias.copy_(torch.linspace(-1, 1, shape[1]))
    x = (1 + torch.randn(shape, generator=source)).bfloat16().contiguous(memory_format=layout)
    gradient = torch.randn(shape, generator=source).bfloat16().contiguous(memory_format=layout)
    results = []
    for layer, kind in ((ours, torch.bfloat16), (theirs, torch.float64)):
        rows = x.to(kind).requires_grad_()
        y = layer(rows)
        assert y.dtype == kind
        results.append([y, *torch.autograd.grad(y, [rows, *layer.parameters()], gradient.to(kind))])
    for name, own, exact in zip(("y", "dx", "dweight", "dbias"), *results, strict=True):
        worst = (own.double() - exact).abs().max() / exact.abs().max()
        assert worst < 0.01, (name, float(worst))  # bf16 keeps eight bits


def test_layout_and_results_stay_without_gradients():
    layer = GroupNorm(4, 32)
    x = torch.randn(2, 32, 40, 40).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x), y)
