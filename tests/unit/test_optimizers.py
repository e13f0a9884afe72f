"""The fused Adam in any memory layout, against torch's plain one."""

import pytest
import torch
from torch import nn

from poiesis.training.optimizers import FusedAdam


@pytest.mark.parametrize("decoupled", [False, True])
def test_channels_last_weights_take_the_same_steps(decoupled):
    kinds = (torch.optim.Adam, torch.optim.AdamW)
    source = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, 3, 3, generator=source)
    gradients = torch.randn(4, 6, 5, 3, 3, generator=source)

    def walk(layout, gradient_layout, build):
        weight = nn.Parameter(start.clone().contiguous(memory_format=layout))
        optimizer = build([weight])
        for gradient in gradients:
            weight.grad = gradient.clone().contiguous(memory_format=gradient_layout)
            optimizer.step()
        assert optimizer.state[weight]["exp_avg"].shape == weight.shape
        return weight.detach()

    def ours(parameters):
        return FusedAdam(
            parameters, lr=0.1, weight_decay=0.3, decoupled_weight_decay=decoupled, fused=True
        )

    def theirs(parameters):
        return kinds[decoupled](parameters, lr=0.1, weight_decay=0.3, foreach=False, fused=False)

    plain, last = torch.contiguous_format, torch.channels_last
    wanted = walk(plain, plain, theirs)
    for layout in (plain, last):
        for gradient_layout in (plain, last):
            assert torch.allclose(walk(layout, gradient_layout, ours), wanted, atol=1e-6)
