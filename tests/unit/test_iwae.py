"""IWAE: its bound, its two gradients, bits drawn anew."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from poiesis.data import open_data
from poiesis.errors import ConfigError
from poiesis.models.autoencoders.iwae import IWAE
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.base import Batch
from poiesis.rng import Draws
from poiesis.spec import Grid, Vector
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine

SPEC = Vector(features=4, domain="bits")


def make(cls=IWAE, **changes):
    torch.manual_seed(0)
    base = {"network": "mlp", "widths": (8,), "latent_dim": 2, "likelihood": "bernoulli"}
    config = cls.Config(**{**base, **changes})
    return cls(config, cls.view(config, SPEC))


def batch_of(x, seed=0):
    draws = Draws(("test", seed), total=len(x))
    return Batch(x=x, condition=None, index=torch.arange(len(x)), draws=draws, size=len(x))


def rows(n):
    return (torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float().repeat(n, 1)


def test_one_sample_is_the_elbo_on_average():
    x = rows(20_000)
    one, vae = make(samples=1), make(VAE)
    vae.load_state_dict(one.state_dict())
    bound = one.loss(batch_of(x), 0)[0].reshape(-1, 3).mean(0)
    torch.testing.assert_close(
        bound, vae.loss(batch_of(x, 1), 0)[0].reshape(-1, 3).mean(0), atol=0.02, rtol=0
    )


def test_the_bound_is_the_log_of_the_mean_weight_and_grows_with_the_samples():
    model = make(samples=6)
    x = rows(1)
    log_w, _ = model._log_weights(batch_of(x), 6)
    wanted = -log_w.exp().mean(1).log()
    torch.testing.assert_close(model.loss(batch_of(x), 0)[0], wanted)
    assert (wanted <= -log_w.mean(1)).all()
    # And log_prob agrees: both approach -log p(x) from above.
    many = rows(4000)
    means = [float(make(samples=s).loss(batch_of(many), 0)[0].detach().mean()) for s in (1, 4, 32)]
    exact = -float(make().log_prob(rows(1), samples=20_000).nats.float().mean())
    assert means[0] > means[1] > means[2] > exact - 1e-3
    assert means[2] - exact < 0.1 * (means[0] - exact)


@pytest.mark.parametrize("samples", [1, 5])
def test_both_gradients_have_the_same_mean_and_double_less_noise(samples):
    """For the encoder; the decoder's are equal draw by draw."""
    x, draws = rows(1), 1500
    found = {}
    for kind in ("plain", "double"):
        model = make(samples=samples, gradient=kind)
        encoder, decoder = list(model.encoder.parameters()), list(model.decoder.parameters())
        gradients = []
        for seed in range(draws):
            value = model.loss(batch_of(x, seed), 0)[0].sum()
            all_of = torch.autograd.grad(value, encoder + decoder)
            gradients.append(torch.cat([g.flatten() for g in all_of]))
        found[kind] = torch.stack(gradients)
        split = sum(p.numel() for p in encoder)
    torch.testing.assert_close(
        found["plain"][:, split:], found["double"][:, split:], atol=1e-4, rtol=1e-3
    )
    plain, double = found["plain"][:, :split], found["double"][:, :split]
    error = (plain.var(0) + double.var(0)).div(draws).sqrt()
    z = (plain.mean(0) - double.mean(0)) / (error + 1e-12)
    assert float(z.abs().max()) < 4.5 and float(z.square().mean()) < 1.5
    assert float(double.var(0).sum()) < float(plain.var(0).sum())


def test_bits_are_drawn_anew_from_gray_levels():
    data = open_data("digits")
    gray = dataclasses.replace(IWAE.default(Grid(channels=1, size=(28, 28))), widths=(16,))
    assert gray.dynamic and gray.likelihood == "bernoulli"
    config = dataclasses.replace(gray, latent_dim=2, batch_size=1437)
    torch.manual_seed(0)
    model = IWAE(config, IWAE.view(config, data.spec))
    engine = Engine(model, data, TrainConfig(steps=2), quiet=True)
    loader = engine.loader(engine.stages[0], "train")
    rows_now, _, where = loader.batch(0)
    again, _, places = loader.batch(1)
    assert set(rows_now.unique().tolist()) == {0.0, 1.0}
    first, second = rows_now[where.argsort()], again[places.argsort()]
    assert 0.05 < float((first != second).float().mean()) < 0.5
    x, _ = data.splits["train"].fetch(torch.arange(len(first)))
    share = float(first.mean()) / float(x.float().mean() / 16)
    assert share == pytest.approx(1, abs=0.02)
    with pytest.raises(ConfigError, match="dynamic = True makes bits"):
        IWAE.Config(dynamic=True, likelihood="gaussian")


def test_what_has_no_meaning_here_is_refused():
    with pytest.raises(ConfigError, match="beta = 4"):
        IWAE.Config(beta=4.0)
    assert math.isclose(IWAE.Config(samples=50).samples, 50)
