"""Variances that a ddpm learns, and features computed twice to save memory."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.rng import Draws, Noise
from poiesis.sampling import diffusion, solvers
from poiesis.spec import Classes, Grid, Vector

DIGIT = Grid(channels=1, size=(8, 8), levels=256)


def build(spec=DIGIT, **options):
    size = {"network": "mlp"} if isinstance(spec, Vector) else {"multipliers": (1, 2)}
    size |= {"attention": ()} if isinstance(spec, Vector) else {"attention": (4,)}
    options = {"channels": 8, "groups": 4, "timesteps": 40, "variance": "learned", **options}
    config = DDPM.Config(**size, **options)
    torch.manual_seed(0)
    model = DDPM(config, DDPM.view(config, spec), Classes(count=3))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def batch_of(spec=DIGIT, n=8):
    x = torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    classes = torch.arange(n) % 3
    return Batch(x=x, condition=classes, index=classes, draws=Draws((0,), total=n), size=n)


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_term_is_the_divergence_of_two_normal_distributions(share):
    schedule = diffusion.cosine_schedule(40)
    g = torch.Generator().manual_seed(0)
    x0, guess, x_t = (torch.randn(3, 2, 5, generator=g).double() for _ in range(3))
    t = torch.tensor([1, 17, 39])
    expected = []
    for row, level in enumerate(t.tolist()):
        a, b, small, large = diffusion.posterior(
            *(float(v[i]) for i in (level, level - 1) for v in (schedule.alpha, schedule.sigma))
        )
        q = Normal(a * x_t[row] + b * x0[row], math.sqrt(small))
        variance = math.exp((1 - share) * math.log(small) + share * math.log(large))
        p = Normal(a * x_t[row] + b * guess[row], math.sqrt(variance))
        expected.append(kl_divergence(q, p).sum())
    shares = torch.full_like(x0, share)
    found = diffusion.step_kl(schedule, t, x0, guess, shares)
    torch.testing.assert_close(found, torch.stack(expected))
    if share == 0:
        torch.testing.assert_close(found, diffusion.step_kl(schedule, t, x0, guess))


@pytest.mark.parametrize("spec", [DIGIT, Vector(features=3)])
def test_at_its_lower_end_the_learned_bound_is_the_fixed_one(spec, monkeypatch):
    learned = build(spec)
    fixed = build(spec, variance="fixed")
    network = "unet" if isinstance(spec, Grid) else "mlp"

    def say(value):
        def forward(x, t, condition=None):
            return torch.cat([0.5 * x, torch.full_like(x, value)], 1)[:, : x.shape[1] * 2]

        return forward

    monkeypatch.setattr(getattr(fixed, network), "forward", lambda x, t, c=None: 0.5 * x)
    monkeypatch.setattr(getattr(learned, network), "forward", say(-1.0))
    x = batch_of(spec).x
    expected = fixed.log_prob(x, samples=40).nats
    torch.testing.assert_close(learned.log_prob(x, samples=40).nats, expected)
    monkeypatch.setattr(getattr(learned, network), "forward", say(1.0))
    assert not torch.allclose(learned.log_prob(x, samples=40).nats, expected, rtol=1e-2)


def test_the_variance_is_learned_where_the_estimate_errs():
    """With a useless estimate the best variance of a value is a closed form, within its range."""
    schedule, t = diffusion.cosine_schedule(40), 5
    small, large = (
        diffusion.posterior(
            *(float(v[i]) for i in (t, t - 1) for v in (schedule.alpha, schedule.sigma))
        )[k]
        for k in (2, 3)
    )
    b = diffusion.posterior(
        *(float(v[i]) for i in (t, t - 1) for v in (schedule.alpha, schedule.sigma))
    )[1]
    # KL is least where the variance is small + b² error²; choose the error for the middle.
    middle = math.sqrt(small * large)
    x0 = torch.full((1, 1), math.sqrt(middle - small) / b).double()
    share = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([share], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        value = diffusion.step_kl(schedule, torch.tensor([t]), x0, 0 * x0, share).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert float(share.detach()) == pytest.approx(0.5, abs=1e-3)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DIGIT, Vector(features=3)])
def test_the_bound_trains_the_variance_alone(spec, monkeypatch):
    model = build(spec)
    batch = batch_of(spec)
    t = torch.tensor([0, 1, 2, 10, 20, 30, 38, 39])
    alpha, sigma = model._level(t)
    x_t = alpha * batch.x + sigma * torch.randn(
        batch.x.shape, generator=torch.Generator().manual_seed(2)
    )
    output = model.output(x_t, t, batch.condition).detach().requires_grad_()
    value, logs = model.further_loss(batch.x, x_t, t, output)
    assert value.shape == (8,) and value.dtype == torch.float32 and set(logs) == {"vlb"}
    torch.testing.assert_close(value.detach(), logs["vlb"] * 0.04)  # T/1000
    value.sum().backward()
    mean, variance = output.grad.chunk(2, dim=1)
    assert not mean.any()
    assert torch.isfinite(variance).all() and variance.flatten(1).any(1).all()


def test_the_fixed_loss_is_as_it_was():
    model, plain = build(), build(variance="fixed")
    assert model.unet.conv_out.out_channels == 2 and plain.unet.conv_out.out_channels == 1
    assert set(plain.loss(batch_of(), 0)[1]) == {"mse"}
    assert set(model.loss(batch_of(), 0)[1]) == {"mse", "vlb"}


# -- sampling -------------------------------------------------------------------------------------


def test_ancestral_sampling_has_the_variance_it_is_told():
    """Two steps from known x: the spread of what comes is the geometric mean of the two bounds."""
    schedule = diffusion.cosine_schedule(40)
    path = diffusion.make_path(schedule, 40, "trailing")
    _, _, small, large = diffusion.posterior(
        path.alpha[20], path.sigma[20], path.alpha[21], path.sigma[21]
    )
    part = diffusion.Path(path.levels[20:21], path.alpha[20:22], path.sigma[20:22])
    noise = Noise(0, range(4000))
    x = torch.zeros(4000, 1).double()
    shares = torch.full((4000, 1), 0.25)
    out = solvers.ancestral(lambda x, t: 0 * x, part, x, noise, variance=lambda: shares)
    expected = math.sqrt(small**0.75 * large**0.25)
    assert float(out.std()) == pytest.approx(expected, rel=0.05)


def test_the_model_samples_with_its_own_variance(monkeypatch):
    model = build()

    def at(value, **options):
        def forward(x, t, condition=None):
            return torch.cat([0 * x, torch.full_like(x, value)], 1)

        monkeypatch.setattr(model.unet, "forward", forward)
        chosen = DDPM.Sampling(sampler="ancestral", steps=8, **options)
        return model.sample(3, options=chosen, precision="fp32")

    torch.testing.assert_close(at(-1.0), at(0.0, variance="small"))
    torch.testing.assert_close(at(1.0, guidance=3.0), at(0.0, variance="large", guidance=3.0))
    assert not torch.allclose(at(-1.0), at(1.0), atol=1e-2)
    plain = build(variance="fixed")
    ancestral = {"sampler": "ancestral", "steps": 4}
    torch.testing.assert_close(
        plain.sample(2, options=DDPM.Sampling(**ancestral)),
        plain.sample(2, options=DDPM.Sampling(**ancestral, variance="large")),
    )
    with pytest.raises(ConfigError, match="variance = learned, but this model's is fixed"):
        plain.sample(1, options=DDPM.Sampling(**ancestral, variance="learned"))


def test_the_improved_preset_is_the_papers_size():
    spec = Grid(channels=3, size=(32, 32))
    config = DDPM.preset("improved", spec)
    with torch.device("meta"):
        model = DDPM(config, DDPM.view(config, spec))
    # Improved DDPM's released CIFAR-10 network has 52.5 million parameters.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(52.5, abs=0.2)
