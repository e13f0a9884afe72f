"""Options of the diffusion family: features that are computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from poiesis.models.base import Batch
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.rng import Draws, active
from poiesis.spec import Classes, Grid

TINY: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "groups": 4,
    "timesteps": 50,
}
DIGIT = Grid(channels=1, size=(8, 8), levels=17)


def build(**options) -> DDPM:
    config = DDPM.Config(**{**TINY, **options})
    torch.manual_seed(0)
    return DDPM(config, DDPM.view(config, DIGIT), Classes(count=3))


def stir(model):
    """Give every parameter a value, so that zero-initialised layers take part."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def make_batch(n=6, spec=DIGIT) -> Batch:
    x = torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    draws = Draws((3,), total=n)
    return Batch(x=x, condition=torch.arange(n) % 3, index=torch.arange(n), draws=draws, size=n)


def gradients(model: DDPM, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with active(batch.draws):
        model.loss(batch, 0)[0].mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# -- recomputing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputing_keeps_less_and_gives_the_same_gradients(dropout):
    kept, found = [], []
    for recompute in (False, True):
        model = stir(build(dropout=dropout, recompute=recompute)).train()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found.append(gradients(model, make_batch()))
        kept.append(saved)
    # Of what lies inside the blocks nothing is kept.
    assert kept[1] < kept[0] / 2
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.abs().sum() > 0 or "class_embedding" in name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)
    # The mask of the first time is drawn again: another draw gives other gradients.
    if dropout:
        other = make_batch()
        other = Batch(
            x=other.x,
            condition=other.condition,
            index=other.index,
            draws=Draws((4,), total=6),
            size=6,
        )
        changed = gradients(stir(build(dropout=dropout)).train(), other)
        assert any(not torch.allclose(changed[name], found[0][name]) for name in changed)
