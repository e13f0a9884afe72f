"""Self-conditioning: what the network is shown in training, by samplers, likelihoods and edits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.diffusion.consistency import Consistency
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.score_sde import ScoreSDE
from poiesis.nn.dit import DiTOptions
from poiesis.rng import Draws, Noise, active
from poiesis.spec import Classes, Grid, Vector

DIGIT = Grid(channels=1, size=(8, 8), levels=17)
UNET: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "attention": (), "groups": 4}
MLP: dict[str, Any] = {"network": "mlp", "channels": 16, "blocks": 2}
DIT: dict[str, Any] = {"network": "dit", "dit": DiTOptions(patch=2, width=16, depth=1, heads=2)}
NETWORKS = {
    "image": (DIGIT, UNET),
    "folded audio": (Grid(channels=2, size=(16,), domain="real"), {**UNET, "fold": 2}),
    "video": (Grid(channels=1, size=(3, 8, 8)), UNET),
    "vector": (Vector(features=3), MLP),
    "transformer": (DIGIT, DIT),
}


def stir(model: Any, by: float = 0.1) -> Any:
    """Give every parameter a value, so that layers that begin at zero take part."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=g))
    return model


def build(cls: Any = FlowMatching, spec: Any = DIGIT, classes: int = 0, **options) -> Any:
    base = UNET if isinstance(spec, Grid) else MLP
    config = cls.Config(**{"self_condition": True, **base, **options})
    torch.manual_seed(0)
    return cls(config, cls.view(config, spec), Classes(count=classes) if classes else None)


def batch_of(model: Any, n: int = 8, start: int = 0, total: int = 8, **more: Any) -> Batch:
    g = torch.Generator().manual_seed(5)
    x = (torch.rand(total, *model.spec.shape, generator=g) * 2 - 1)[start : start + n]
    draws = Draws((3,), total=total, start=start, size=n)
    rows = torch.arange(start, start + n)
    condition = rows % 3 if model.condition else None
    return Batch(x=x, condition=condition, index=rows, draws=draws, size=n, **more)


@pytest.fixture
def calls(monkeypatch):
    """Record what networks are shown, and what they make of it: (earlier, estimate of x0)."""
    seen: list[tuple[Tensor | None, Tensor]] = []
    plain = EDM.estimate

    def estimate(self, x_t, t, condition=None, earlier=None):
        found = plain(self, x_t, t, condition, earlier)
        seen.append((earlier, found[0].detach()))
        return found

    monkeypatch.setattr("poiesis.models.diffusion.denoising.DenoisingModel.estimate", estimate)
    return seen


# -- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_without_weights_for_the_estimate_it_is_the_plain_model(name):
    spec, options = NETWORKS[name]
    own, plain = (stir(build(spec=spec, **options, self_condition=on)) for on in (True, False))
    wider = []
    with torch.no_grad():
        for (label, p), (other, q) in zip(
            own.named_parameters(), plain.named_parameters(), strict=True
        ):
            assert label == other
            if p.shape != q.shape:
                wider.append(label)
                assert p.shape[1] == 2 * q.shape[1]
                p.zero_()
                p[:, : q.shape[1]] = q
            else:
                p.copy_(q)
    (inlet,) = wider
    x, t = torch.randn(4, *own.spec.shape), torch.rand(4)
    earlier = torch.randn_like(x)
    wanted = plain.output(x, t, None)
    assert float(wanted.detach().std()) > 1e-3
    torch.testing.assert_close(own.output(x, t, None, earlier), wanted)
    with torch.no_grad():
        weight = own.get_parameter(inlet)
        weight[:, -1] = torch.randn_like(weight[:, -1])
    changed = own.output(x, t, None, earlier) - wanted
    assert bool((changed.detach().abs().flatten(1).amax(1) > 1e-4).all())


def test_what_lies_far_out_says_no_more_than_the_bound():
    x, t = torch.randn(2, 3), torch.rand(2)
    for spec, bound in ((Vector(features=3), 10.0), (DIGIT, 1.0)):
        model = stir(build(spec=spec))
        x = torch.randn(2, *model.spec.shape)
        outputs = [model.output(x, t, None, torch.full_like(x, v)) for v in (bound, 1e6, bound / 2)]
        assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DDPM, EDM, FlowMatching, ScoreSDE])
def test_half_of_the_samples_are_shown_the_first_estimate(cls, monkeypatch):
    model = stir(build(cls, classes=3))
    shown: list[Tensor] = []
    plain = type(model).output

    def output(x_t, t, condition, earlier):
        shown.append(earlier)
        return plain(model, x_t, t, condition, earlier)

    monkeypatch.setattr(model, "output", output)
    batch = batch_of(model, 64, total=64)
    model.loss(batch, 0)[0].sum().backward()
    first, second = shown
    assert not first.any() and not second.requires_grad
    none = (second == 0).flatten(1).all(1)
    assert 20 <= int(none.sum()) <= 44
    assert all(p.grad is not None for p in model.parameters())
    # What the others are shown is what the model says of them without it.
    assert float(second[~none].abs().mean()) > 1e-2
    shown.clear()
    model.validate(batch_of(model, training=False))
    assert not shown[0].any() and bool((shown[1] != 0).flatten(1).any(1).all())


def test_no_gradient_goes_through_the_first_estimate():
    model = stir(build())
    batch = batch_of(model)
    earlier = model._earlier(batch, batch.x, torch.rand(8), None)[0]
    assert not earlier.requires_grad


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_samples_are_shown_the_same_wherever_they_are_computed(dropout):
    model = stir(build(classes=3, dropout=dropout)).train()

    def losses(n, start=0):
        batch = batch_of(model, n, start)
        with active(batch.draws):
            return model.loss(batch, 0)[0].detach()

    parts = torch.cat([losses(3), losses(5, 3)])
    torch.testing.assert_close(losses(8), parts)


# -- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm-solver++", "ancestral", "adaptive"])
@torch.no_grad()
def test_samplers_carry_the_estimate_on(sampler, calls):
    model = stir(build())
    model.draw(Noise(0, range(3)), None, model.Sampling(sampler=sampler, steps=4))
    assert len(calls) >= 4 and not calls[0][0].any()
    for (_, before), (earlier, _) in pairwise(calls):
        torch.testing.assert_close(earlier, before.clamp(-1, 1))
    assert float(calls[-1][0].abs().mean()) > 1e-2


@torch.no_grad()
def test_with_guidance_both_halves_are_shown_the_guided_estimate(calls):
    model = stir(build(EDM, classes=3))
    options = model.Sampling(sampler="euler", steps=3, guidance=2.0)
    model.draw(Noise(0, range(3)), torch.arange(3), options)
    assert len(calls) == 3 and not calls[0][0].any()
    for (_, before), (earlier, _) in pairwise(calls):
        conditional, unconditional = before.chunk(2)
        guided = unconditional + 2 * (conditional - unconditional)
        assert earlier.shape == (6, 1, 8, 8) and not torch.equal(conditional, unconditional)
        torch.testing.assert_close(earlier, torch.cat([guided, guided]))


def test_samples_do_not_depend_on_their_batch():
    model = stir(build(classes=3))
    whole = model.sample(5, seed=2, precision="fp32")
    parts = model.sample(5, seed=2, batch_size=2, precision="fp32")
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


# -- the estimate by itself, likelihood, edits -----------------------------------------------------


def test_alone_the_denoiser_goes_on_from_its_own_first_estimate(calls):
    model = stir(build(DDPM, variance="learned", timesteps=50))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    found = model.denoiser(x, t)
    first = model.estimate(x, t, None, torch.zeros_like(x))[0]
    assert torch.equal(found, model.estimate(x, t, None, first)[0])
    assert not torch.equal(found, first)


def test_the_density_is_one_whose_divergence_goes_through_both_calls():
    model = stir(build(spec=Vector(features=1)), by=0.2)
    x = torch.linspace(-12, 12, 481)[:, None]
    density = model.log_prob(x).nats.exp()
    assert float(density.max()) < 2  # no spike between the points
    assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1, abs=0.01)


def test_bounds_of_images_are_finite():
    for cls in (DDPM, EDM):
        model = stir(build(cls))
        found = model.log_prob(torch.zeros(2, 1, 8, 8), samples=4)
        assert bool(torch.isfinite(found.nats).all())


@torch.no_grad()
def test_edits_begin_without_an_estimate_and_keep_what_is_known(calls):
    model = stir(build())
    options = model.Sampling(steps=4, sampler="euler")
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    filled = model.inpaint(x, mask, Noise(0, range(2)), None, options, resamples=2)
    assert torch.equal(filled[..., :4], x[..., :4]) and not torch.equal(filled, x)
    edited = model.edit(x, Noise(0, range(2)), None, options, strength=0.5)
    noise = model.invert(x, None, options)
    assert bool(torch.isfinite(edited).all()) and bool(torch.isfinite(noise).all())
    # Each of the three began anew: seven steps of inpainting, two of the edit, three back.
    begun = [i for i, (earlier, _) in enumerate(calls) if not earlier.any()]
    assert begun == [0, 7, 9] and len(calls) == 12


# -- models built on others ------------------------------------------------------------------------


def test_a_consistency_student_takes_one_call_as_at_the_start(calls):
    with pytest.raises(ConfigError, match="self_condition = True has no use in a consistency"):
        Consistency.Config(self_condition=True)
    teacher = stir(build(classes=3))
    model = Consistency(
        Consistency.Config(teacher="a run"),
        teacher.spec,
        teacher.condition,
        parts={"teacher": teacher},
    )
    model.sample(2, options=model.Sampling(steps=2), precision="fp32")
    assert len(calls) == 2 and not any(earlier.any() for earlier, _ in calls)
    assert bool(torch.isfinite(model.loss(batch_of(model), 0)[0]).all())


def test_a_straightened_flow_goes_on_being_shown_its_estimate(calls):
    teacher = stir(build())
    config = FlowMatching.Config(teacher="a run", teacher_steps=2, **UNET)
    model = FlowMatching(config, teacher.spec, None, parts={"teacher": teacher})
    noise = Noise(0, range(2))
    options = model.Sampling(steps=3)
    with torch.no_grad():
        drawn = model.draw(noise, None, options)
        torch.testing.assert_close(drawn, teacher.draw(Noise(0, range(2)), None, options))
    assert calls[1][0].any()
    assert bool(torch.isfinite(model.loss(batch_of(model), 0)[0]).all())
