"""Very Deep VAE: closed forms, exact likelihoods of small models, counts and wrong inputs."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import distributions as D
from torch import nn

from poiesis.errors import ConfigError, SpecError
from poiesis.models.autoencoders.hierarchy import gaussian_kl
from poiesis.models.autoencoders.mixture import (
    log_logistic,
    log_mixture,
    mixture_mean,
    mixture_sample,
    values_per_pixel,
)
from poiesis.models.autoencoders.vae import log_normal
from poiesis.models.autoencoders.vdvae import VDVAE
from poiesis.models.base import Batch
from poiesis.models.capabilities import of
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens, Vector

GRAY = Grid(channels=1, size=(28, 28))
COLOUR = Grid(channels=3, size=(32, 32))
BITS = Grid(channels=1, size=(8, 8), levels=2)
SMALL = {
    "patch": 2,
    "sizes": (4, 2, 1),
    "encoder": (1, 1, 1),
    "decoder": (1, 1, 2),
    "widths": (8, 8, 12),
    "bottleneck": 0.25,
    "latent_channels": 2,
}


def make(spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(VDVAE.preset(preset, spec), **changes)
    return VDVAE(config, VDVAE.view(config, spec), condition)


def shaken(model, scale=0.3):
    """Give every parameter a random value: none of the zeros it starts with is left."""
    g = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=scale, generator=g)
    return model


def make_batch(x, condition=None, step=0):
    b = len(x)
    draws = Draws(("test", step), total=b)
    return Batch(x=x, condition=condition, index=torch.arange(b), draws=draws, size=b)


def data(model, n, seed=0):
    x = torch.rand(n, *model.spec.shape, generator=torch.Generator().manual_seed(seed))
    if model.spec.domain == "signed":
        top = model.spec.levels - 1
        return (x * top).round() * 2 / top - 1
    return x if model.spec.domain == "unit" else (x > 0.5).float()


def count(module):
    return sum(p.numel() for p in module.parameters())


# -- distributions -------------------------------------------------------------------------------


def test_kl_of_two_normals_is_torchs():
    g = torch.Generator().manual_seed(0)
    q, p = ((torch.randn(50, generator=g), torch.randn(50, generator=g)) for _ in range(2))
    expected = D.kl_divergence(D.Normal(q[0], q[1].exp()), D.Normal(p[0], p[1].exp()))
    torch.testing.assert_close(gaussian_kl(q, p), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(gaussian_kl(q, q), torch.zeros(50))


def values_of(c, m, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (1, values_per_pixel(c, m), 1, 1)
    values = scale * torch.randn(shape, generator=g, dtype=torch.float64)
    values.reshape(m, -1)[:, 1 + c : 1 + 2 * c] -= 1.5  # log-scales
    return values


def test_mixture_sums_to_one_over_the_levels():
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None, None, None]
    for seed in range(5):
        log_p = log_mixture(x, values_of(1, 10, 2.0, seed), 10, 256)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_mixture_sums_to_one_over_all_colours():
    levels = torch.linspace(-1, 1, 9, dtype=torch.float64).tolist()
    x = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.float64)
    for seed in range(3):
        log_p = log_mixture(x[:, :, None, None], values_of(3, 4, 2.0, seed), 4, 9)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_mixture_of_one_is_the_discretised_logistic():
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    values = torch.tensor([0.7, -0.3, -2.0], dtype=torch.float64)[None, :, None, None]
    found = log_mixture(x[:, None, None, None], values, 1, 256).flatten()
    torch.testing.assert_close(found, log_logistic(x, values[0, 1, 0], values[0, 2, 0], 256))


def test_ten_mixtures_of_a_colour_need_a_hundred_values():
    model = make(COLOUR)
    assert model.config.mixtures == 10
    assert model.decoder.out.out_channels == 100 * model.config.patch**2


def test_pixels_follow_their_mixture():
    values = values_of(2, 3, 0.7, seed=4).float()
    n = 40_000
    g = torch.Generator().manual_seed(0)
    choice, u = torch.rand(n, 1, 1, 1, generator=g), torch.rand(n, 2, 1, 1, generator=g)
    x = mixture_sample(values.expand(n, -1, 1, 1), 3, 5, choice, u)
    levels = torch.linspace(-1, 1, 5).tolist()
    every = torch.tensor(list(itertools.product(levels, repeat=2)))
    p = log_mixture(every[:, :, None, None], values, 3, 5).exp().flatten()
    share = (x[:, None, :, 0, 0] - every).abs().amax(2).lt(1e-4).float().mean(0)
    assert share.sum().item() == pytest.approx(1, abs=1e-5)
    assert (share - p).abs().max() < 5 * math.sqrt(0.25 / n)


def test_mean_of_a_mixture_is_that_of_its_pixels():
    values = values_of(3, 4, 0.25, seed=2).float()
    values.reshape(4, -1)[:, 4:7] = -4.0  # narrow: nothing beyond [-1, 1]
    n = 20_000
    g = torch.Generator().manual_seed(0)
    choice, u = torch.rand(n, 1, 1, 1, generator=g), torch.rand(n, 3, 1, 1, generator=g)
    x = mixture_sample(values.expand(n, -1, 1, 1), 4, 256, choice, u)
    torch.testing.assert_close(
        mixture_mean(values, 3, 4), x.mean(0, keepdim=True), atol=0.01, rtol=0
    )


# -- networks ------------------------------------------------------------------------------------


def test_cifar10_has_the_size_of_the_paper():
    """39 million parameters; blocks as in the paper's string for CIFAR-10."""
    config = VDVAE.preset("cifar10", COLOUR)
    with torch.device("meta"):
        model = VDVAE(config, VDVAE.view(config, COLOUR))
    assert count(model) == 39_145_700
    assert len(model.decoder.blocks) == 1 + 3 + 6 + 11 + 22
    assert sum(map(len, model.encoder.levels)) == 12 + 7 + 7 + 4 + 3
    # Only maps of more than 2 px have anything to convolve.
    kernels = [block.residual[3].kernel_size for block in model.decoder.blocks]
    assert kernels == [(1, 1)] + [(3, 3)] * 42


def test_default_is_small():
    assert 0.3e6 < count(make(GRAY)) < 2.5e6


@pytest.mark.parametrize(
    "spec",
    [
        GRAY,
        BITS,
        COLOUR,
        Grid(channels=1, size=(8, 8), levels=17),
        Grid(channels=3, size=(17, 17)),
        Grid(channels=4, size=(20, 33)),
        Grid(channels=3, size=(64, 64)),
    ],
    ids=str,
)
@pytest.mark.parametrize("resampling", ["learned", "average"])
def test_shapes(spec, resampling):
    model = make(spec, Classes(count=3), resampling=resampling, conditional=True)
    x, y = data(model, 4), torch.tensor([0, 1, 2, 0])
    loss, _ = model.loss(make_batch(x, y), 0)
    assert loss.shape == (4,) and loss.dtype == torch.float32
    loss.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    low = -1 if model.spec.domain == "signed" else 0
    for mean in (True, False):
        sample = model.sample(3, options=VDVAE.Sampling(mean=mean))
        assert sample.shape == (3, *spec.shape)
        assert sample.min() >= low and sample.max() <= 1
    assert model.reconstruct(x, y).shape == x.shape
    assert of(model) == ["encode", "decode", "reconstruct", "log_prob", "bits_back"]


def test_drawn_pixels_are_levels():
    spec = Grid(channels=3, size=(8, 8), levels=17)
    x = make(spec, **SMALL).sample(4, options=VDVAE.Sampling(mean=False))
    levels = (x + 1) * 8
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    bits = make(BITS, **SMALL).sample(4, options=VDVAE.Sampling(mean=False))
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_maps_keep_the_proportions_of_the_image():
    model = make(Grid(channels=1, size=(20, 33)), patch=4, sizes=(9, 4, 1))
    assert [tuple(b.shape[2:]) for b in model.decoder.bias] == [(5, 9), (3, 4), (1, 1)]
    latent = model.encode(data(model, 2))
    shapes = [tuple(z.shape) for z in latent.values()]
    assert (shapes[0], shapes[-1]) == ((2, 16, 1, 1), (2, 16, 5, 9))


# -- the bound -----------------------------------------------------------------------------------


def test_posterior_equal_to_the_prior_costs_nothing():
    model = make(BITS, **SMALL)
    for block in model.decoder.blocks:
        for network in (block.posterior, block.prior):
            nn.init.zeros_(network[-1].weight)
    x = data(model, 5)
    terms = model.validate(make_batch(x))
    assert torch.equal(terms["kl"], torch.zeros(5))
    torch.testing.assert_close(terms["negative_elbo"], terms["reconstruction"])


def test_a_fresh_prior_is_standard_normal():
    model = make(GRAY, **{**SMALL, "sizes": (14, 7, 1)})
    seen = []

    def choose(index, block, x, prior):
        seen.append(prior)
        return torch.randn_like(prior[0])

    with torch.no_grad():
        model.decoder(3, None, choose)
    assert len(seen) == 4
    assert all(not mean.any() and not log_sigma.any() for mean, log_sigma in seen)


def test_levels_share_the_kl():
    model = shaken(make(BITS, **SMALL), 0.1)
    loss, logs = model.loss(make_batch(data(model, 5)), 0)
    torch.testing.assert_close(loss, logs["reconstruction"] + logs["kl"])
    torch.testing.assert_close(logs["kl"], logs["kl_4"] + logs["kl_2"] + logs["kl_1"])


def tiny():
    """A model of two blocks with one latent number each, so that p(x) can be integrated."""
    shape = {"patch": 8, "sizes": (1,), "encoder": (1,), "decoder": (2,), "widths": (8,)}
    return shaken(make(BITS, **shape, latent_channels=1), 0.5)


def exact(model, x, n=301, reach=9.0):
    """Return log p(x) by summing over a grid of both latent numbers."""
    # Numbers in units of each prior: z = mean + spread * eps, so that eps is standard normal.
    eps = torch.linspace(-reach, reach, n)
    grid = torch.cartesian_prod(eps, eps)[:, :, None, None, None]

    def choose(index, block, h, prior):
        return prior[0] + prior[1].exp() * grid[:, index]

    output = model.decoder(len(grid), None, choose)
    log_p = log_normal(grid, torch.zeros(()), torch.zeros(())).flatten(1).sum(1)
    step = math.log(2 * reach / (n - 1))
    rows = [model._log_likelihood(row.expand(len(grid), -1, -1, -1), output) for row in x]
    return torch.stack([torch.logsumexp((row + log_p).double(), 0) + 2 * step for row in rows])


@torch.no_grad()
def test_bounds_approach_the_integral_from_below():
    model = tiny()
    x = data(model, 8)
    truth = exact(model, x)
    repeated = x.repeat(50, 1, 1, 1)
    elbo = -model.validate(make_batch(repeated))["negative_elbo"].double()
    bounds = [elbo.mean().item()]
    for samples in (5, 50, 500):
        bounds.append(model.log_prob(repeated, samples=samples).nats.mean().item())
    assert bounds == sorted(bounds)
    assert bounds[0] < truth.mean().item() - 0.3
    assert bounds[-1] <= truth.mean().item() + 0.05
    tight = model.log_prob(x, samples=20_000)
    torch.testing.assert_close(tight.nats, truth, atol=0.1, rtol=0)
    assert (tight.kind, tight.measure, tight.detail) == ("bound", "discrete", "IWAE(20000)")


def test_one_sample_has_the_mean_of_the_closed_form():
    model = shaken(make(BITS, **SMALL), 0.15)
    x = data(model, 1).repeat(4000, 1, 1, 1)
    with torch.no_grad():
        closed = -model.validate(make_batch(x))["negative_elbo"]
    sampled = model.log_prob(x).nats.float()
    error = math.sqrt((closed.var() + sampled.var()).item() / 4000)
    assert abs(closed.mean() - sampled.mean()).item() < 5 * error


def test_log_prob_in_parts_is_the_same_kind_of_number(monkeypatch):
    model = shaken(make(BITS, **SMALL), 0.1)
    x = data(model, 3)
    whole = model.log_prob(x, samples=4000).nats
    monkeypatch.setattr("poiesis.models.autoencoders.vdvae._VALUES", 8 * 16 * 3 * 100)
    torch.testing.assert_close(model.log_prob(x, samples=4000).nats, whole, atol=0.3, rtol=0)


def test_log_prob_says_what_it_measures():
    x = torch.rand(2, 1, 28, 28)
    assert make(GRAY).log_prob(x.round()).detail == "ELBO"
    gray = make(GRAY, dynamic=False).log_prob(x)
    assert gray.detail == "ELBO, mean over binarisations of the gray levels"
    assert gray.dims == 784


# -- data and what it can do ---------------------------------------------------------------------


def test_views():
    def view(spec, **changes):
        return VDVAE.view(dataclasses.replace(VDVAE.preset("default", spec), **changes), spec)

    assert view(GRAY).domain == "bits"
    assert view(GRAY, dynamic=False).domain == "unit"
    assert view(BITS).domain == "unit"
    assert view(COLOUR).domain == "signed"
    assert view(Grid(channels=3, size=(17, 17))).size == (17, 17)  # patches need no padding here


def test_decode_takes_the_first_maps_alone():
    model = shaken(make(BITS, **SMALL), 0.3)
    x = data(model, 3)
    latent = model.encode(x)
    assert list(latent) == ["z0", "z1", "z2", "z3"]
    assert torch.equal(model.decode(latent), model.reconstruct(x))
    coarse = model.decode({"z0": latent["z0"], "z1": latent["z1"]})
    assert coarse.shape == x.shape
    assert not torch.allclose(coarse, model.decode(latent))
    for wrong in ({"z1": latent["z1"]}, {**latent, "z9": x}, latent["z0"]):
        with pytest.raises(ConfigError, match="mapping with z0 and any others up to z3"):
            model.decode(wrong)


def test_temperature_is_the_spread_of_the_samples():
    model = shaken(make(BITS, **SMALL), 0.3)

    def spread(temperature):
        options = VDVAE.Sampling(temperature=temperature)
        return model.sample(32, options=options).std(0).mean().item()

    assert spread(0.0) < 1e-6
    assert 1e-3 < spread(0.3) < spread(1.0)


@pytest.mark.parametrize("spec", [BITS, Grid(channels=3, size=(8, 8), levels=17)], ids=str)
def test_sampling_does_not_depend_on_the_batch_size(spec):
    model = make(spec, **SMALL)
    options = VDVAE.Sampling(mean=False)
    together = model.sample(7, seed=3, options=options, batch_size=7)
    apart = model.sample(7, seed=3, options=options, batch_size=2)
    # A draw at the very edge of a level may round to the other side.
    assert (together == apart).float().mean() > 0.99


def test_losses_belong_to_their_samples():
    model = make(GRAY, dynamic=False)
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    loss, _ = model.loss(make_batch(x), 0)
    (gradient,) = torch.autograd.grad(loss[1], x)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, False]


def test_classes_are_learnt():
    """Class 0 is black and class 1 white: what the samples show is up to the class."""
    model = make(BITS, Classes(count=2), conditional=True, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    y = torch.arange(32) % 2
    x = y.float()[:, None, None, None].expand(32, 1, 8, 8)
    for step in range(80):
        loss, _ = model.loss(make_batch(x, y, step), step)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    sample = model.sample(6)
    assert sample[1::2].mean() > 0.8 and sample[::2].mean() < 0.2
    assert model.log_prob(x, y).nats.mean() > model.log_prob(x, 1 - y).nats.mean() + 10
    for call in (model.encode, model.reconstruct, model.log_prob):
        with pytest.raises(ConfigError, match="conditional"):
            call(x)


def test_recipe_of_the_paper():
    model = make(GRAY)
    (optim,) = model.optimizers().values()
    assert (optim.kind, optim.betas, optim.clip) == ("adamw", (0.9, 0.9), 200)
    assert (optim.weight_decay, optim.schedule.warmup) == (0.01, 100)
    config = VDVAE.preset("cifar10", COLOUR)
    assert (config.learning_rate, config.ema, config.bottleneck) == (2e-4, 0.9999, 0.25)


def test_it_runs_under_bf16_autocast():
    model = make(GRAY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(make_batch(torch.rand(4, 1, 28, 28).round()), 0)
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert model.sample(2, precision="bf16").dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "spec", "error", "text"),
    [
        ({}, Tokens(vocabulary=9, length=4), SpecError, "images of 1 to 4 channels"),
        ({}, Vector(features=9), SpecError, "images of 1 to 4 channels"),
        ({}, Grid(channels=5, size=(8, 8)), SpecError, "images of 1 to 4 channels"),
        ({}, Grid(channels=1, size=(65, 65)), SpecError, "8 to 64 px"),
        ({"patch": 3}, GRAY, SpecError, "must begin with 10"),
        ({"sizes": (7, 7)}, GRAY, ConfigError, "must fall"),
        ({"widths": (32,)}, GRAY, ConfigError, "widths = .32,. has 1 levels"),
        ({"decoder": (1, 0)}, GRAY, ConfigError, "decoder = 0"),
        ({"likelihood": "logistic"}, GRAY, ConfigError, "use bernoulli"),
        ({"latent_channels": 0}, GRAY, ConfigError, "latent_channels = 0"),
        ({"conditional": True}, GRAY, ConfigError, "needs data with classes"),
    ],
)
def test_wrong_choices_say_so(changes, spec, error, text):
    with pytest.raises(error, match=text):
        make(spec, **changes)


def test_the_paper_is_for_its_size():
    with pytest.raises(SpecError, match="32 px"):
        VDVAE.preset("cifar10", GRAY)


def test_log_prob_needs_a_sample():
    with pytest.raises(ConfigError, match="samples = 0"):
        make(BITS).log_prob(torch.rand(1, 1, 8, 8), samples=0)
