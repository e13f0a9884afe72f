"""Autoguidance: away from a weaker version, by closed forms and between runs."""

import pytest
import torch

import poiesis
from poiesis.errors import ConfigError
from poiesis.models import trained as trained_models
from poiesis.models.diffusion import autoguidance, guidance
from poiesis.models.diffusion.edm import EDM
from poiesis.models.trained import load
from poiesis.rng import Noise
from poiesis.spec import Vector

HOW = {"grids": 0, "threads": 1, "quiet": True}
SMALL = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}


def exact(std):
    """Return a model that is the exact denoiser of N(0, std²)."""
    model = EDM(EDM.Config(network="mlp", channels=8, blocks=1), Vector(features=1))

    def denoise(x_t, t, condition=None):
        alpha, sigma = model._level(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t

    model.denoiser = denoise
    return model


def test_guidance_of_a_gaussian_has_a_closed_form(monkeypatch):
    """With dx/dσ = (x − D)/σ, guidance of gains s²/(s² + σ²) multiplies powers of their flows.

    Each flow alone scales x by sqrt((s² + σ_end²)/(s² + σ_start²)), and the equation is linear in
    D, so weight w of the one and 1 − w of the other make the product of such powers.
    """
    model, weak = exact(0.5), exact(0.8)
    monkeypatch.setattr(guidance, "weaker", lambda guide, own: weak)
    for scale in (1, 2, 3):
        options = EDM.Sampling(sampler="heun", steps=200, guide="weak", guide_scale=scale)
        x = model.draw(Noise(0, range(8)), None, options)
        first = Noise(0, range(8)).randn(1) * 80
        own = (0.25 / (0.25 + 80**2)) ** 0.5
        other = (0.64 / (0.64 + 80**2)) ** 0.5
        torch.testing.assert_close(x, first * own**scale * other ** (1 - scale), rtol=5e-3, atol=0)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm-solver++", "unipc"])
def test_scale_one_is_the_model_itself(sampler, monkeypatch):
    model = exact(0.5)
    monkeypatch.setattr(guidance, "weaker", lambda guide, own: exact(0.8))
    draws = [
        model.draw(Noise(0, range(4)), None, EDM.Sampling(sampler=sampler, steps=5, **how))
        for how in ({}, {"guide": "weak", "guide_scale": 1.0}, {"guide": "weak"})
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_run_guides_another_and_other_kinds_are_refused(tmp_path):
    model = {"config": {"model": SMALL}, **HOW}
    weak = poiesis.train("edm", "digits", steps=2, out=tmp_path / "weak", **model)
    run = poiesis.train("edm", "digits", steps=6, out=tmp_path / "run", **model)
    other = poiesis.train("flow-matching", "digits", steps=2, out=tmp_path / "flow", **model)
    trained = load(run.path)
    guided = trained.options(guide=f"{weak.path}@latest", steps=2)
    assert trained.model.sample(2, options=guided).shape == (2, 1, 8, 8)
    with pytest.raises(ConfigError, match="is FlowMatching, not EDM; give an earlier"):
        trained.model.sample(2, options=trained.options(guide=str(other.path)))


@pytest.fixture
def loads(monkeypatch):
    """Return the checkpoints that were loaded, one after the other."""
    found = []

    def note(run, **how):
        found.append(how["checkpoint"])
        return load(run, **how)

    autoguidance._loaded.cache_clear()
    monkeypatch.setattr(trained_models, "load", note)
    return found


def test_a_guide_is_loaded_once_and_anew_when_it_was_saved_anew(tmp_path, loads):
    model = {"config": {"model": SMALL}, **HOW}
    run = poiesis.train("edm", "digits", steps=3, out=tmp_path / "run", **model)
    weak = poiesis.train("edm", "digits", steps=2, out=tmp_path / "weak", **model)
    trained = load(run.path)
    options = trained.options(guide=f"{weak.path}@latest", steps=2)
    first = trained.model.sample(6, options=options, batch_size=2)
    assert loads == ["latest"]  # for three batches
    again = trained.model.sample(6, options=options, batch_size=2)
    assert torch.equal(again, first) and loads == ["latest"]
    poiesis.train(resume=weak.path, steps=4, quiet=True)
    assert not torch.equal(trained.model.sample(6, options=options, batch_size=2), first)
    assert loads == ["latest"] * 2
    trained.model.sample(2, options=trained.options(guide=f"{weak.path}@4", steps=2))
    assert loads == ["latest", "latest", "4"]


def test_an_earlier_latent_diffusion_guides_a_later_one(tmp_path):
    flow = {**SMALL, "batch_size": 8, "multipliers": (1,), "attention": (4,)}
    config = {"model": {"widths": (8,), "blocks": 0, "latent_channels": 2, "flow": flow}}
    how = {"config": config, "checkpoints": 10, "keep": 9, **HOW}
    run = poiesis.train("latent-diffusion", "digits", steps=10, out=tmp_path / "run", **how)
    other = poiesis.train("latent-diffusion", "digits", steps=10, out=tmp_path / "b", seed=1, **how)
    trained = load(run.path, checkpoint="10")

    def drawn(**options):
        return trained.model.sample(2, options=trained.options(steps=3, **options))

    plain, guide = drawn(), f"{run.path}@8"
    assert not torch.equal(drawn(guide=guide), plain)
    torch.testing.assert_close(drawn(guide=f"{run.path}@10"), plain, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="has another first stage, so its latents are others"):
        drawn(guide=str(other.path))
    with pytest.raises(ConfigError, match="has another first stage"):
        drawn(guide=f"{run.path}@2")  # of the first stage
    edm = poiesis.train("edm", "digits", steps=1, out=tmp_path / "e", **HOW)
    with pytest.raises(ConfigError, match="is EDM, not LatentDiffusion"):
        drawn(guide=str(edm.path))
