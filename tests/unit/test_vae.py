"""VAE: closed forms, exact likelihoods of small models, counts and wrong inputs."""

import dataclasses
import math

import pytest
import torch
from torch import distributions as D
from torch import nn

from poiesis.errors import ConfigError, SpecError
from poiesis.models.autoencoders.mixture import log_bernoulli, log_logistic
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.base import Batch
from poiesis.models.capabilities import of
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens, Vector

GRAY = Grid(channels=1, size=(28, 28))
BITS = Grid(channels=1, size=(8, 8), levels=2)


def make(spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(VAE.preset(preset, spec), **changes)
    return VAE(config, VAE.view(config, spec), condition)


def make_batch(x, condition=None, step=0):
    b = len(x)
    draws = Draws(("test", step), total=b)
    return Batch(x=x, condition=condition, index=torch.arange(b), draws=draws, size=b)


def data(model, n, seed=0):
    x = torch.rand(n, *model.spec.shape, generator=torch.Generator().manual_seed(seed))
    return 2 * x - 1 if model.spec.domain == "signed" else x


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_tutorial_has_the_parameters_of_tensorflows_tutorial():
    model = make(GRAY, preset="tutorial")
    assert count(model.encoder) == 28_036
    assert count(model.decoder) == 41_953
    convolutions = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size, m.stride) for m in convolutions] == [
        (32, (3, 3), (2, 2)),
        (64, (3, 3), (2, 2)),
    ]


@pytest.mark.parametrize(
    ("spec", "preset"),
    [
        (GRAY, "default"),
        (GRAY, "tutorial"),
        (GRAY, "compress"),
        (Grid(channels=3, size=(17, 17)), "compress"),
        (Grid(channels=3, size=(17, 17)), "residual"),
        (Grid(channels=3, size=(17, 17)), "tutorial"),
        (Grid(channels=4, size=(20, 33)), "residual"),
        (Grid(channels=3, size=(64, 64)), "default"),
        (Grid(channels=1, size=(8, 8), levels=17), "default"),
        (Grid(channels=1, size=(8, 8), levels=17), "residual"),
        (Vector(features=5), "default"),
        (Vector(features=5, domain="bits"), "default"),
    ],
)
@pytest.mark.parametrize("conditional", [False, True])
def test_shapes_of_every_network(spec, preset, conditional):
    model = make(spec, Classes(count=3), preset, conditional=conditional)
    x = data(model, 4)
    y = torch.tensor([0, 1, 2, 0]) if conditional else None
    loss, _ = model.loss(make_batch(x, y), 0)
    assert loss.shape == (4,) and loss.dtype == torch.float32
    loss.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for mean in (True, False):
        sample = model.sample(3, options=VAE.Sampling(mean=mean))
        assert sample.shape == (3, *spec.shape)
        if model.spec.domain in ("unit", "signed", "bits"):
            low = -1 if model.spec.domain == "signed" else 0
            assert sample.min() >= low and sample.max() <= 1
    assert model.reconstruct(x, y).shape == x.shape
    assert of(model) == ["encode", "decode", "reconstruct", "log_prob", "bits_back"]


def test_kl_is_the_closed_form():
    model = make(BITS, latent_dim=5, weight_decay=0.0)
    x = data(model, 6)
    latent = model.encode(x)
    q = D.Normal(latent["mean"], (0.5 * latent["log_variance"]).exp())
    expected = D.kl_divergence(q, D.Normal(0.0, 1.0)).sum(1)
    terms = model.validate(make_batch(x))
    torch.testing.assert_close(terms["kl"], expected, rtol=1e-4, atol=1e-5)
    total = terms["reconstruction"] + terms["kl"]
    torch.testing.assert_close(terms["negative_elbo"], total)


def test_bernoulli_is_that_of_torch_with_its_gradients():
    torch.manual_seed(0)
    logits = (8 * torch.randn(4, 2, 3, 5, dtype=torch.float64)).requires_grad_()
    bits = (torch.rand(4, 2, 3, 5, dtype=torch.float64) < 0.4).double()
    wanted = D.Bernoulli(logits=logits).log_prob(bits).sum((1, 2, 3))
    torch.testing.assert_close(log_bernoulli(bits, logits), wanted)
    gray = torch.rand_like(bits).requires_grad_()
    assert torch.autograd.gradcheck(log_bernoulli, (gray, logits))
    far = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    log_bernoulli(torch.tensor([[1.0, 1.0]]), far).sum().backward()
    assert far.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-9.0, -4.0, 0.0, 4.0])
def test_discretised_logistic_sums_to_one(levels, log_scale):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean in (-1.7, -0.31, 0.0, 1.0):
        scale = torch.tensor(log_scale, dtype=torch.float64)
        log_p = log_logistic(x, torch.tensor(mean, dtype=torch.float64), scale, levels)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_discretised_logistic_is_finite_far_out_in_float32():
    mean = torch.full((256,), 1.0, requires_grad=True)
    log_p = log_logistic(torch.linspace(-1, 1, 256), mean, torch.tensor(-7.0), 256)
    log_p.sum().backward()
    assert log_p.isfinite().all() and mean.grad.isfinite().all()


def test_logistic_pixels_follow_their_distribution():
    model = make(Grid(channels=1, size=(8, 8), levels=17), latent_dim=2, network="mlp")
    final = model.decoder.body[-2][-1]
    nn.init.zeros_(final.weight)
    with torch.no_grad():
        final.bias[:64] = 0.2
        final.bias[64:] = -2.0
    x = model.sample(200, options=VAE.Sampling(mean=False), batch_size=200).flatten()
    levels = torch.linspace(-1, 1, 17)
    p = log_logistic(levels, torch.tensor(0.2), torch.tensor(-2.0), 17).exp()
    share = torch.stack([(x - level).abs().lt(1e-4).float().mean() for level in levels])
    assert share.sum().item() == pytest.approx(1, abs=1e-6)
    assert (share - p).abs().max() < 0.012  # 5 standard errors of 12,800 pixels


class _Linear(nn.Module):
    """Stands in for an encoder or decoder: x → W x + b, constant log-variances beside."""

    def __init__(self, weight, bias, extra=None):
        super().__init__()
        self.weight, self.bias, self.extra = weight, bias, extra

    def forward(self, x, label):
        out = x @ self.weight.T + self.bias
        return out if self.extra is None else torch.cat((out, self.extra.expand(len(x), -1)), 1)


def linear_gaussian(offset):
    """A VAE whose p(x) = N(b, W Wᵀ + σ² I) is known, its q off the posterior by `offset`."""
    d, z, sigma = 5, 2, 0.6
    model = make(Vector(features=d), latent_dim=z)
    g = torch.Generator().manual_seed(3)
    b = torch.randn(d, generator=g)
    # Orthogonal columns: the true posterior is then diagonal, as q is.
    w = torch.linalg.qr(torch.randn(d, z, generator=g)).Q * torch.tensor([1.5, 0.7])
    raw = math.log(math.expm1(math.log(sigma) + 6)) - 6
    nn.init.constant_(model.log_sigma, raw / 10)
    precision = torch.eye(z) + w.T @ w / sigma**2
    covariance = torch.linalg.inv(precision)
    projection = covariance @ w.T / sigma**2
    model.encoder = _Linear(
        projection, offset - projection @ b, covariance.diagonal().log() + offset
    )
    model.decoder = _Linear(w, b)
    p = D.MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(d))
    return model, p


def test_log_prob_is_exact_with_the_true_posterior():
    model, p = linear_gaussian(offset=0.0)
    x = p.sample((20,))
    for samples in (1, 50):
        nats = model.log_prob(x, samples=samples).nats
        torch.testing.assert_close(nats.float(), p.log_prob(x), atol=2e-4, rtol=1e-4)


def test_importance_weighted_bound_tightens_towards_the_exact_value():
    model, p = linear_gaussian(offset=0.5)
    x = p.sample((400,))
    exact = p.log_prob(x).mean().item()
    bounds = [model.log_prob(x, samples=k).nats.mean().item() for k in (1, 5, 50, 2000)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 0.3
    assert bounds[-1] == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
def test_importance_weighted_bound_equals_quadrature(likelihood):
    model = make(BITS, latent_dim=1, likelihood=likelihood, widths=(16, 16))
    x = (data(model, 4) > 0.5).float() if likelihood == "bernoulli" else data(model, 4).sign()
    z = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        output = model.decoder(z, None)
        prior = D.Normal(0.0, 1.0).log_prob(z[:, 0])
        exact = torch.stack(
            [
                torch.logsumexp(model._log_likelihood(row.expand(4001, 1, 8, 8), output) + prior, 0)
                for row in x
            ]
        ) + math.log(16 / 4000)
    estimate = model.log_prob(x, samples=10_000)
    torch.testing.assert_close(estimate.nats.float(), exact, atol=0.05, rtol=0)
    assert (estimate.kind, estimate.measure) == ("bound", "discrete")
    assert estimate.detail == "IWAE(10000)"


def test_log_prob_says_what_it_measures():
    x = torch.rand(2, 1, 8, 8)
    gray = make(Grid(channels=1, size=(8, 8)), likelihood="bernoulli").log_prob(x)
    assert gray.detail == "ELBO, mean over binarisations of the gray levels"
    vector = make(Vector(features=3)).log_prob(torch.randn(2, 3), seed=4)
    assert (vector.measure, vector.dims, vector.detail) == ("density", 3, "ELBO")


def test_gray_levels_give_the_mean_over_binarisations():
    model = make(Grid(channels=1, size=(8, 8)), likelihood="bernoulli")
    g = torch.Generator().manual_seed(0)
    x, output = torch.rand(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    bits = (torch.rand(20_000, 1, 8, 8, generator=g) < x).float()
    mean = model._log_likelihood(bits, output.expand(20_000, 1, 8, 8)).mean().item()
    assert model._log_likelihood(x, output).item() == pytest.approx(mean, abs=0.15)


def test_free_bits_charge_the_floor_and_warmup_scales():
    x = torch.rand(8, 1, 8, 8)
    plain = make(BITS, latent_dim=4)
    terms = plain._terms(make_batch(x))
    floor = 2 * terms[1].mean(0).max().item()
    loss, logs = make(BITS, latent_dim=4, free_bits=floor).loss(make_batch(x), 0)
    torch.testing.assert_close(loss, logs["reconstruction"] + 4 * floor)
    loss, logs = make(BITS, latent_dim=4, free_bits=1e-9).loss(make_batch(x), 0)
    torch.testing.assert_close(loss, logs["reconstruction"] + logs["kl"])
    loss, logs = make(BITS, latent_dim=4, beta=4.0, kl_warmup=10).loss(make_batch(x), 4)
    torch.testing.assert_close(loss, logs["reconstruction"] + 2 * logs["kl"])


@pytest.mark.parametrize("preset", ["mlp", "residual"])
def test_losses_belong_to_their_samples(preset):
    model = make(BITS, preset=preset)
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    loss, _ = model.loss(make_batch(x), 0)
    (gradient,) = torch.autograd.grad(loss[1], x)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, False]


def test_classes_are_learnt():
    """Class 0 is black and class 1 white: with an almost useless code only the class can tell."""
    model = make(BITS, Classes(count=2), conditional=True, latent_dim=1, beta=50.0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    y = torch.arange(32) % 2
    x = y.float()[:, None, None, None].expand(32, 1, 8, 8)
    for step in range(60):
        loss, _ = model.loss(make_batch(x, y, step), step)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    sample = model.sample(6)
    assert sample[1::2].min() > 0.8 and sample[::2].max() < 0.2
    assert model.log_prob(x, y).nats.mean() > model.log_prob(x, 1 - y).nats.mean() + 50
    with pytest.raises(ConfigError, match="conditional"):
        model.encode(x)


def test_it_learns_the_spread_and_bound_of_gaussian_data():
    """After training, the bound comes within 0.1 nats of the true entropy of correlated data."""
    g = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    p = D.MultivariateNormal(torch.zeros(2), covariance)
    x = torch.randn(4096, 2, generator=g) @ torch.linalg.cholesky(covariance).T
    model = make(Vector(features=2), latent_dim=2, widths=(32, 32), weight_decay=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(400):
        rows = x[torch.randint(len(x), (256,), generator=g)]
        loss, _ = model.loss(make_batch(rows, step=step), step)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    nats = model.log_prob(x, samples=50).nats.mean().item()
    assert nats == pytest.approx(p.log_prob(x).mean().item(), abs=0.1)
    assert torch.cov(model.sample(2000, options=VAE.Sampling(mean=False)).T)[0, 1] > 0.6


def test_sampling_does_not_depend_on_the_batch_size():
    model = make(Grid(channels=1, size=(8, 8), levels=17))
    options = VAE.Sampling(mean=False)
    torch.testing.assert_close(
        model.sample(7, seed=3, options=options, batch_size=2),
        model.sample(7, seed=3, options=options, batch_size=7),
    )


def test_it_runs_under_bf16_autocast():
    model = make(GRAY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(make_batch(torch.rand(4, 1, 28, 28)), 0)
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert model.sample(2, precision="bf16").dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "spec", "error", "text"),
    [
        ({}, Tokens(vocabulary=9, length=4), SpecError, "images of 1 to 4 channels"),
        ({}, Grid(channels=5, size=(8, 8)), SpecError, "1 to 4 channels"),
        ({"network": "conv"}, Grid(channels=1, size=(5, 5)), SpecError, "7 to 512 px"),
        ({"network": "residual"}, Vector(features=3), SpecError, "use mlp"),
        ({"likelihood": "logistic"}, Vector(features=3), SpecError, "use gaussian"),
        ({"likelihood": "bernoulli"}, Vector(features=3), SpecError, "use gaussian"),
        ({"preset": "compress"}, Vector(features=3), SpecError, "levels of images"),
        ({"mixtures": 3}, GRAY, ConfigError, "needs likelihood logistic, not 'bernoulli'"),
        ({"latent_dim": 0}, GRAY, ConfigError, "latent_dim = 0"),
        ({"beta": -1.0}, GRAY, ConfigError, "beta = -1"),
        ({"widths": ()}, GRAY, ConfigError, "widths"),
        ({"conditional": True}, GRAY, ConfigError, "needs data with classes"),
    ],
)
def test_wrong_choices_say_so(changes, spec, error, text):
    with pytest.raises(error, match=text):
        make(spec, **changes)


def test_log_prob_needs_a_sample():
    with pytest.raises(ConfigError, match="samples = 0"):
        make(BITS).log_prob(torch.rand(1, 1, 8, 8), samples=0)
