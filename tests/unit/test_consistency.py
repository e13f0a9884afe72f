"""Consistency models: their boundary, their targets, and samples in two calls."""

import math

import pytest
import torch

import poiesis
from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.diffusion.consistency import Consistency, _grid
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.score_sde import ScoreSDE
from poiesis.models.trained import load
from poiesis.rng import Draws
from poiesis.spec import Vector

PLANE = Vector(features=1)
MLP = {"network": "mlp", "channels": 64, "blocks": 2}
TEACHERS = {
    "ddpm": lambda: DDPM(DDPM.Config(**MLP), PLANE),
    "edm": lambda: EDM(EDM.Config(**MLP), PLANE),
    "flow-matching": lambda: FlowMatching(FlowMatching.Config(**MLP), PLANE),
    "vp": lambda: ScoreSDE(ScoreSDE.Config(**MLP), PLANE),
}


def gaussian(model, monkeypatch, mean=0.4, std=0.6):
    """Make a model the exact denoiser of N(mean, std²), at its own levels."""

    def denoise(x_t, t, condition=None):
        alpha, sigma = model._level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    monkeypatch.setattr(model, "denoiser", denoise)


def test_at_the_lowest_level_a_point_is_its_own_end():
    torch.manual_seed(0)
    model = Consistency(Consistency.Config(**MLP), PLANE)
    torch.nn.init.normal_(model.student.mlp.outlet.weight)
    x = torch.randn(8, 1)
    torch.testing.assert_close(model.end(x, torch.full((8,), 0.002)), x)
    assert not torch.allclose(model.end(x, torch.full((8,), 0.5)), x, atol=0.05)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_levels_are_found_in_every_teachers_noise(teacher):
    model = TEACHERS[teacher]()
    ratio = torch.tensor([0.05, 0.7, 3.0, 20.0])
    t, alpha = model.level_of(ratio)
    own_alpha, own_sigma = model.marginal(t)
    torch.testing.assert_close(alpha, own_alpha)
    torch.testing.assert_close(own_sigma / own_alpha, ratio, rtol=0.03, atol=0)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_teachers_step_follows_its_flow(teacher, monkeypatch):
    """For a Gaussian the flow is known: (x − μ) / sqrt(s² + σ²) stays what it is."""
    torch.manual_seed(0)
    model = Consistency(Consistency.Config(**MLP), PLANE, parts={"teacher": TEACHERS[teacher]()})
    gaussian(model.teacher, monkeypatch)
    x = torch.tensor([[-1.0], [0.4], [3.0]])
    high, low = torch.full((3,), 1.1), torch.full((3,), 1.0)
    got = model._step_of_teacher(x, high, low, None)
    expected = 0.4 + (x - 0.4) * math.sqrt((0.36 + 1) / (0.36 + 1.21))
    # ddpm's levels lie 1% apart, and so does the place of its step.
    torch.testing.assert_close(got, expected, atol=0.02 if teacher == "ddpm" else 2e-4, rtol=0)


def test_neighbours_are_drawn_as_the_noise_of_training():
    model = Consistency(Consistency.Config(**MLP, noise_mean=-1.1, noise_std=2.0), PLANE)
    sigmas = torch.tensor(_grid(160))
    assert len(sigmas) == 161
    assert (float(sigmas[0]), float(sigmas[-1])) == (pytest.approx(0.002), pytest.approx(80))
    low, high = model._neighbours(sigmas, torch.rand(20_000, generator=torch.manual_seed(0)))
    assert bool((high > low).all())
    middle = (low * high).sqrt().log()
    # A normal distribution of ln σ, cut off at both ends of the levels.
    cut = [(math.log(v) + 1.1) / 2 for v in (0.002, 80)]
    normal = torch.distributions.Normal(0.0, 1.0)
    density = [math.exp(float(normal.log_prob(torch.tensor(v)))) for v in cut]
    mass = float(normal.cdf(torch.tensor(cut[1])) - normal.cdf(torch.tensor(cut[0])))
    assert float(middle.mean()) == pytest.approx(
        -1.1 + 2 * (density[0] - density[1]) / mass, abs=0.1
    )


@pytest.mark.parametrize("teacher", ["edm", ""])
def test_two_calls_make_the_data(teacher, monkeypatch):
    """Some seconds of distillation from an exact teacher, or of training by itself."""
    torch.manual_seed(0)
    parts = {"teacher": TEACHERS[teacher]()} if teacher else None
    config = Consistency.Config(**MLP, noise_mean=-1.1, noise_std=2.0)
    model = Consistency(config, PLANE, parts=parts)
    if parts:
        gaussian(model.teacher, monkeypatch)
    optimizer = torch.optim.Adam(model.student.parameters(), lr=3e-3)
    steps = 800
    for step in range(steps):
        draws = Draws(("bumps", step), total=256)
        x = 0.4 + 0.6 * draws.randn(1)
        batch = Batch(x=x, condition=None, index=torch.arange(256), draws=draws, size=256)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        model.loss(batch, 5 * step)[0].mean().backward()
        optimizer.step()
    for calls in (1, 2):
        options = Consistency.Sampling(steps=calls)
        x = model.sample(2000, options=options, batch_size=2000)
        assert float(x.mean()) == pytest.approx(0.4, abs=0.12)
        assert float(x.std()) == pytest.approx(0.6, abs=0.15)


def test_a_run_is_distilled_and_loads_without_its_teacher(tmp_path):
    how = {"steps": 6, "grids": 0, "threads": 1}
    small = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}
    teacher = poiesis.train(
        "edm", "digits", config={"model": small}, out=tmp_path / "teacher", quiet=True, **how
    )
    run = poiesis.train(
        "consistency",
        "digits",
        config={"model": {"teacher": str(teacher.path), "levels": 4}},
        out=tmp_path / "student",
        quiet=True,
        **how,
    )
    (tmp_path / "teacher").rename(tmp_path / "gone")
    pictures = load(run.path).sample(3, seed=1)
    assert len(pictures) == 3 and pictures[0].size == (8, 8)
    vae = poiesis.train("vae", "digits", out=tmp_path / "vae", quiet=True, **how)
    with pytest.raises(ConfigError, match="is a VAE; give a run of ddpm, edm, flow-matching"):
        poiesis.train(
            "consistency",
            "digits",
            config={"model": {"teacher": str(vae.path)}},
            out=tmp_path / "other",
            quiet=True,
            **how,
        )
