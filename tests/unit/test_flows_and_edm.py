"""EDM, flow matching and score SDEs: targets, couplings, densities, samples."""

import math

import pytest
import torch

from poiesis.models.base import Batch
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.flow_matching import FlowMatching, matched
from poiesis.models.diffusion.score_sde import ScoreSDE
from poiesis.rng import Draws
from poiesis.sampling.solvers import SOLVERS
from poiesis.spec import Classes, Grid, Vector

DIGIT = Grid(channels=1, size=(8, 8), levels=17)
TINY = {"channels": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}
MODELS = {
    "edm": (EDM, {}),
    "flow-matching": (FlowMatching, {}),
    "logit-normal": (FlowMatching, {"times": "logit-normal"}),
    "vp": (ScoreSDE, {"sde": "vp"}),
    "vp, eps": (ScoreSDE, {"sde": "vp", "prediction": "eps"}),
    "sub-vp": (ScoreSDE, {"sde": "sub-vp"}),
    "ve": (ScoreSDE, {"sde": "ve"}),
}


def build(name, spec=DIGIT, classes=0):
    cls, options = MODELS[name]
    own = TINY if isinstance(spec, Grid) else {"network": "mlp", "channels": 16, "blocks": 2}
    config = cls.Config(**own, **options)
    torch.manual_seed(0)
    return cls(config, cls.view(config, spec), Classes(count=classes) if classes else None)


def batch_of(x, key=0):
    n = len(x)
    return Batch(x=x, condition=None, index=torch.arange(n), draws=Draws((key,), total=n), size=n)


@pytest.mark.parametrize("name", MODELS)
def test_an_exact_network_has_no_loss_and_denoises_exactly(name, monkeypatch):
    model = build(name)
    x0 = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def oracle(x_t, t, condition):
        # Solve the target for the data known; the formulas are the papers', not the code's.
        alpha, sigma = model._level(t)
        eps = (x_t - alpha * x0) / sigma
        if isinstance(model, FlowMatching):
            return eps - x0
        if model.prediction == "eps":
            return eps
        y, s = x_t / alpha, sigma / alpha
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25) ** 0.5
        return (x0 - skip * y) / out

    monkeypatch.setattr(model, "output", oracle)
    loss, _ = model.loss(batch_of(x0), 0)
    assert loss.shape == (8,) and float(loss.max()) < 1e-6
    t = model.spread_times(torch.linspace(0.05, 0.95, 8))
    alpha, sigma = model._level(t)
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.denoiser(x_t, t), x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["edm", "flow-matching", "vp"])
def test_classes_may_be_left_open(name):
    model = build(name, classes=3)
    x, t = torch.zeros(4, 1, 8, 8), model.spread_times(torch.full((4,), 0.5))
    open_class = model.denoiser(x, t, torch.full((4,), 3))
    torch.testing.assert_close(model.denoiser(x, t), open_class)


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
def test_the_networks_input_has_unit_variance(name, monkeypatch):
    model = build(name)
    seen = []
    monkeypatch.setattr(model.unet, "forward", lambda x, t, c: seen.append((x, t)) or 0 * x)
    x0 = 0.5 * torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for share in (0.02, 0.5, 0.98):
        t = model.spread_times(torch.full((400,), share))
        alpha, sigma = model._level(t)
        noisy = alpha * x0 + sigma * torch.randn(x0.shape)
        model.output(noisy, t, None)
        assert float(seen[-1][0].std()) == pytest.approx(1, abs=0.02)
        assert 0 <= float(seen[-1][1][0]) <= 1000


def test_edm_has_the_papers_coefficients_and_times():
    model = build("edm")
    draws = model.draw_times(batch_of(torch.zeros(4000, 1, 8, 8))).log()
    assert float(draws.mean()) == pytest.approx(-1.2, abs=0.08)
    assert float(draws.std()) == pytest.approx(1.2, abs=0.06)
    options = EDM.Sampling()
    path = model.path(options)
    assert len(path.levels) == 18 and SOLVERS[options.sampler].calls(18) == 35
    assert (path.levels[0], path.levels[-1]) == (80, pytest.approx(0.002))


def test_optimal_transport_shortens_the_way_and_keeps_every_noise():
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 64, 2, generator=g)
    order = matched(x, eps)
    assert sorted(order.tolist()) == list(range(64))
    cost = (x - eps[order]).square().sum()
    assert cost < 0.5 * (x - eps).square().sum()
    # No exchange of two rows makes it shorter.
    pairs = torch.cdist(x.double(), eps[order].double()).square()
    own = pairs.diagonal()
    assert bool((pairs + pairs.T >= own[:, None] + own[None] - 1e-5).all())
    classes = torch.arange(64) % 2
    within = matched(x, eps, classes)
    assert torch.equal(classes[within], classes)


@pytest.mark.parametrize("name", MODELS)
def test_density_of_an_untrained_vector_model_is_the_flows(name):
    """A fresh network says 0: the flow is a scaling, its density a normal one of known width."""
    model = build(name, Vector(features=1))
    x = torch.linspace(-12, 12, 481)[:, None]
    found = model.log_prob(x)
    assert (found.kind, found.measure, found.dims) == ("estimate", "density", 1)
    # Velocity 0 keeps N(0, 1), ε = 0 keeps x/α; F = 0 estimates data of N(0, 0.25) perfectly.
    if model.prediction == "velocity":
        width = 1.0
    elif model.prediction == "eps":
        alpha, sigma = model.process.at(model.process.t_max)
        width = sigma / alpha
    else:
        width = 0.5
    expected = torch.distributions.Normal(0, width).log_prob(x[:, 0])
    torch.testing.assert_close(found.nats, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vp, eps"])
def test_a_trained_flow_knows_the_density_of_two_bumps(name):
    """Some seconds of training: the density is the data's, samples are, and both agree."""
    model = build(name, Vector(features=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    steps = 600
    for step in range(steps):
        draws = Draws(("bumps", step), total=256)
        side = draws.randint(2, 1).float() * 2 - 1
        x = side + 0.3 * draws.randn(1)
        batch = Batch(x=x, condition=None, index=torch.arange(256), draws=draws, size=256)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        model.loss(batch, step)[0].mean().backward()
        optimizer.step()
    model.eval()
    grid = torch.linspace(-3, 3, 301)[:, None]
    got = model.log_prob(grid).nats.exp()
    truth = torch.zeros(301)
    for mean in (-1, 1):
        truth += torch.exp(-((grid[:, 0] - mean) ** 2) / 0.18) / (0.3 * math.sqrt(2 * math.pi)) / 2
    assert float((got - truth).abs().sum() * 0.02) / 2 < 0.2  # total variation
    for sampler in ("heun", "dpm-solver++", "dpm-solver++sde"):
        options = type(model).Sampling(sampler=sampler, steps=30, spacing="logsnr")
        x = model.sample(500, options=options, batch_size=500)[:, 0]
        assert 0.4 < float((x > 0).float().mean()) < 0.6
        assert float((x.abs() - 1).abs().mean()) == pytest.approx(0.3 * 0.798, abs=0.08)
