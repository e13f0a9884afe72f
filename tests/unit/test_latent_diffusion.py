"""Latent diffusion: its two stages, the weight of the discriminator, a first stage from a run."""

import pytest
import torch

import poiesis
from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.latent_diffusion import LatentDiffusion
from poiesis.models.trained import load
from poiesis.rng import Draws
from poiesis.spec import Grid

SPEC = Grid(channels=3, size=(16, 16), domain="signed")
FLOW = FlowMatching.Config(channels=8, multipliers=(1,), attention=(4,))
SMALL = LatentDiffusion.Config(
    widths=(8, 8), blocks=1, discriminator_width=4, adversarial_start=0.25, flow=FLOW
)


def build(**changes):
    torch.manual_seed(0)
    config = poiesis.config.override(SMALL, changes)
    return LatentDiffusion(config, LatentDiffusion.view(config, SPEC))


def batch_of(n=6):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 16, 16, generator=g) * 2 - 1
    return Batch(x=x, condition=None, index=torch.arange(n), draws=Draws((0,), total=n), size=n)


def test_the_discriminators_gradient_is_half_the_errors():
    model = build()
    model.progress = 0.5
    mean, _ = model._posterior(batch_of().x)
    back = model.decoder(mean)
    error = (back - batch_of().x).abs().flatten(1).sum(1)
    seems = -model._judge(back)
    weight = 0.5 * model._balance(error, seems)
    last = model.decoder[-1].weight
    by_error, by_seems = (
        torch.autograd.grad(value.mean(), last, retain_graph=True)[0].norm()
        for value in (error, weight * seems)
    )
    assert float(by_seems / by_error) == pytest.approx(0.5, rel=0.05)


def test_the_discriminator_begins_at_its_share_of_the_stage():
    model = build()
    for progress, begun in ((0.0, False), (0.24, False), (0.25, True), (0.9, True)):
        model.progress = progress
        _, logs = model.autoencoder_loss(batch_of(), 0)
        assert ("adversarial" in logs) is begun


def test_latents_are_scaled_once_to_unit_variance():
    model = build()
    first = model.to_latents(batch_of())
    assert float(first.x.std()) == pytest.approx(1, abs=1e-4)
    assert first.x.shape[1:] == model.flow.spec.shape == (4, 4, 4)
    scale = model.scale.clone()
    model.to_latents(batch_of(2))
    assert torch.equal(model.scale, scale)
    x = batch_of().x
    torch.testing.assert_close(model.decode(model.encode(x)), model.reconstruct(x))


def test_samples_are_the_flows_latents_decoded():
    model = build()
    model.scale.fill_(2.0)
    options = LatentDiffusion.Sampling(sampler="euler", steps=4)
    drawn = model.sample(3, options=options, precision="fp32")
    latents = model.flow.sample(3, options=options, precision="fp32")
    torch.testing.assert_close(drawn, model.decode(latents))
    # Latents are not cut off at 1, as pictures are.
    assert float(latents.abs().max()) > 1


def test_a_trained_vq_vae_can_be_the_first_stage(tmp_path):
    how = {"steps": 4, "grids": 0, "threads": 1, "quiet": True}
    first = poiesis.train("vq-vae", "digits", preset="fast", out=tmp_path / "first", **how)
    flow = {"channels": 8, "multipliers": (1,), "attention": (4,)}
    run = poiesis.train(
        "latent-diffusion",
        "digits",
        config={"model": {"first": str(first.path), "flow": flow}},
        out=tmp_path / "run",
        **how,
    )
    (tmp_path / "first").rename(tmp_path / "gone")
    trained = load(run.path)
    assert trained.model.flow.spec.size == trained.model.first.grid
    assert len(trained.sample(2)) == 2
    other = poiesis.train("vae", "digits", out=tmp_path / "vae", **how)
    with pytest.raises(ConfigError, match="is a VAE; give a run of vq-vae"):
        poiesis.train(
            "latent-diffusion",
            "digits",
            config={"model": {"first": str(other.path), "flow": flow}},
            out=tmp_path / "no",
            **how,
        )
