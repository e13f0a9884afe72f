"""The GANs' family base: losses in closed form, penalties by finite differences, its options."""

import dataclasses
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poiesis.errors import ConfigError
from poiesis.models.base import Batch
from poiesis.models.gans import penalties
from poiesis.models.gans.cgan import CGAN
from poiesis.models.gans.dcgan import DCGAN
from poiesis.models.gans.gan import GAN
from poiesis.models.gans.losses import LOSSES, AdversarialLoss, resolve
from poiesis.models.gans.lsgan import LSGAN
from poiesis.models.gans.wgan import WGAN
from poiesis.models.gans.wgan_gp import WGANGP
from poiesis.rng import Draws, Noise
from poiesis.spec import Classes, Grid, Vector

DIGITS = Grid(channels=1, size=(8, 8), levels=17)
COLOUR = Grid(channels=3, size=(32, 32))
POINTS = Vector(features=2)

MINE = AdversarialLoss(
    discriminator=lambda real, fake: real.square() + fake.square(),
    generator=lambda fake, real: (fake - 3).square(),
)


def make(cls, spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(cls.preset(preset, spec), **changes)
    return cls(config, cls.view(config, spec), condition)


def make_batch(x, condition=None, step=0):
    b = len(x)
    draws = Draws(("test", step), total=b)
    return Batch(x=x, condition=condition, index=torch.arange(b), draws=draws, size=b)


def data(model, n):
    return 2 * torch.rand(n, *model.spec.shape, generator=torch.Generator().manual_seed(1)) - 1


def count(module):
    return sum(p.numel() for p in module.parameters())


# -- losses --------------------------------------------------------------------------------------

REAL, FAKE = torch.tensor([0.3, -2.0, 0.0, 1.7]), torch.tensor([-1.0, 4.0, 0.0, -0.6])


def log_d(logit):
    return logit.double().sigmoid().log().float()


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", -log_d(REAL) - log_d(-FAKE), log_d(-FAKE)),
        ("non-saturating", -log_d(REAL) - log_d(-FAKE), -log_d(FAKE)),
        ("least-squares", ((REAL - 1) ** 2 + FAKE**2) / 2, (FAKE - 1) ** 2 / 2),
        # The mean of label times score, with labels -1 for real and 1 for fake.
        ("wasserstein", -1 * REAL + 1 * FAKE, -1 * FAKE),
        ("hinge", (1 - REAL).clamp(min=0) + (1 + FAKE).clamp(min=0), -FAKE),
        ("relativistic", -log_d(REAL - FAKE), -log_d(FAKE - REAL)),
    ],
)
def test_losses_are_their_formulas(name, discriminator, generator):
    loss = LOSSES[name]
    torch.testing.assert_close(loss.discriminator(REAL, FAKE), discriminator)
    torch.testing.assert_close(loss.generator(FAKE, REAL), generator)
    assert loss.discriminator(REAL.bfloat16(), FAKE.bfloat16()).dtype == torch.float32
    assert loss.paired == (name == "relativistic")
    if not loss.paired:
        apart = loss.discriminator(REAL, None) + loss.discriminator(None, FAKE)
        torch.testing.assert_close(apart, discriminator)
        torch.testing.assert_close(loss.generator(FAKE, None), generator)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.log_ratio])
def test_logits_become_log_ratios_where_a_loss_says_so(name):
    """Minimise over one logit per place of a space of four, whose densities are known."""
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    logit = torch.zeros(4, requires_grad=True)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    weights = p[pairs[:, 0]] * q[pairs[:, 1]]
    best = torch.optim.LBFGS([logit], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        best.zero_grad()
        loss = LOSSES[name].discriminator(logit[pairs[:, 0]], logit[pairs[:, 1]])
        total = (weights * loss).sum()
        total.backward()
        return total

    best.step(closure)
    ratio = (p / q).log()
    found = logit.detach() - logit.detach().mean() + ratio.mean()
    torch.testing.assert_close(found, ratio, atol=2e-3, rtol=0)


def test_a_loss_of_ones_own_is_found_by_import_path():
    model = make(GAN, POINTS, loss=f"{__name__}:MINE")
    assert resolve(f"{__name__}:MINE") is MINE
    x = data(model, 6)
    model.eval()
    loss, _ = model.generator_loss(make_batch(x), 0)
    fake = model.generator(make_batch(x).randn(model.config.latent_dim), None)
    torch.testing.assert_close(loss, (model.discriminator(fake, None) - 3) ** 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hing", "did you mean 'hinge'"),
        ("no such", "no loss named 'no such'"),
        ("nowhere.to.be:FOUND", "can't be imported"),
        ("math:pi", "is float, not an AdversarialLoss"),
        ("math:nothing", "is nothing, not an AdversarialLoss"),
    ],
)
def test_wrong_losses_say_so(name, text):
    with pytest.raises(ConfigError, match=text):
        model = make(GAN, POINTS, loss=name)
        model.stages()


# -- penalties -----------------------------------------------------------------------------------


class Cubic(nn.Module):
    """A smooth score of (b, 3) whose gradient changes from place to place."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]]).double())

    def forward(self, x):
        return (x.double() @ self.weight.T).pow(3).sum(1) / 3


def numerical_gradient(score, x, step=1e-4):
    """Return the gradient of each row's score (b, d) by central differences."""
    columns = []
    for i in range(x.size(1)):
        moved = torch.zeros_like(x)
        moved[:, i] = step
        columns.append((score(x + moved) - score(x - moved)) / (2 * step))
    return torch.stack(columns, 1).detach()


def numerical_by_weight(function, weight, step=1e-5):
    found = torch.zeros_like(weight)
    for place in range(weight.numel()):
        kept = weight.data.view(-1)[place].item()
        for sign in (1, -1):
            weight.data.view(-1)[place] = kept + sign * step
            found.view(-1)[place] += sign * function().item() / (2 * step)
        weight.data.view(-1)[place] = kept
    return found


@pytest.fixture
def points():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, generator=g, dtype=torch.float64) / 2


def test_gradient_penalty_is_that_of_finite_differences(points, monkeypatch):
    real, fake = points
    score, epsilon = Cubic(), torch.rand(5, generator=torch.Generator().manual_seed(1))
    # In float32 finite differences of a penalty would say little.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def penalty():
        return penalties.gradient_penalty(score, real, fake, epsilon.double())

    between = epsilon[:, None] * real + (1 - epsilon[:, None]) * fake
    expected = (numerical_gradient(score, between).norm(dim=1) - 1) ** 2
    torch.testing.assert_close(penalty(), expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(penalty().sum(), score.weight)
    by_weight = numerical_by_weight(lambda: penalty().sum(), score.weight)
    torch.testing.assert_close(gradient, by_weight, rtol=1e-5, atol=1e-6)


def test_squared_gradient_is_that_of_finite_differences(points, monkeypatch):
    x, _ = points
    score = Cubic()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def penalty():
        leaf = x.detach().requires_grad_()
        return penalties.squared_gradient(score(leaf), leaf)

    expected = numerical_gradient(score, x).square().sum(1)
    torch.testing.assert_close(penalty(), expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(penalty().sum(), score.weight)
    by_weight = numerical_by_weight(lambda: penalty().sum(), score.weight)
    torch.testing.assert_close(gradient, by_weight, rtol=1e-5, atol=1e-6)


def test_gradient_penalty_survives_a_flat_score():
    weight = torch.zeros(3, requires_grad=True)
    x = torch.ones(2, 3)
    penalty = penalties.gradient_penalty(lambda v: v @ weight, x, x, torch.zeros(2))
    assert penalty.tolist() == [1.0, 1.0]
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)
    assert gradient.isfinite().all()


def test_orthogonal_penalty_is_that_of_finite_differences():
    weight = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], requires_grad=True)
    products = weight.detach() @ weight.detach().T
    expected = sum(products[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
    found = penalties.orthogonal([weight, torch.ones(3)])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, weight)
    by_weight = numerical_by_weight(lambda: penalties.orthogonal([weight]), weight, 1e-2)
    torch.testing.assert_close(gradient, by_weight, rtol=1e-2, atol=1e-1)
    assert penalties.orthogonal([torch.eye(4)]).item() == 0


def test_clipping_bounds_weights():
    weights = [torch.tensor([-3.0, 0.005]), torch.tensor([[0.02]])]
    penalties.clip_(weights, 0.01)
    assert [w.flatten().tolist() for w in weights] == [
        pytest.approx([-0.01, 0.005]),
        pytest.approx([0.01]),
    ]


@pytest.mark.parametrize("penalty", ["gradient", "r1", "r2", "zero-centred"])
def test_penalties_belong_to_the_loss(penalty):
    """The whole discriminator loss, against the sum of its parts made by hand, in and beside it."""
    model = make(WGANGP, POINTS, penalty=penalty, penalty_weight=3.0)
    d, x = model.discriminator, data(model, 6)
    with torch.no_grad():
        fake = model.generator(make_batch(x).randn(model.config.latent_dim), None)
    batch = make_batch(x)
    batch.randn(model.config.latent_dim)
    epsilon = batch.rand()[:, None] if penalty == "gradient" else 0

    def slope(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(d(x, None).sum(), x)[0]

    expected = {
        "gradient": 3 * (slope(epsilon * x + (1 - epsilon) * fake).norm(dim=1) - 1) ** 2,
        "r1": 1.5 * slope(x).square().sum(1),
        "r2": 1.5 * slope(fake).square().sum(1),
        "zero-centred": 1.5 * (slope(x).square().sum(1) + slope(fake).square().sum(1)),
    }[penalty]
    loss, logs = model.discriminator_loss(make_batch(x), 0)
    game = d(fake, None) - d(x, None)
    torch.testing.assert_close(loss, game + expected)
    torch.testing.assert_close(logs["penalty"], expected)
    lazily = {"penalty_every": 4, "critic_steps": 2}
    lazy = make(WGANGP, POINTS, penalty=penalty, penalty_weight=3.0, **lazily)
    values, _ = lazy.penalty_loss(make_batch(x), 0)
    torch.testing.assert_close(values, 8 * expected)
    phases = {phase.name: phase for phase in lazy.stages()[0].phases}
    assert list(phases) == ["discriminator", "penalty", "generator"]
    assert (phases["penalty"].every, phases["penalty"].step) == (4, ("discriminator",))
    plain, _ = lazy.discriminator_loss(make_batch(x), 0)
    torch.testing.assert_close(plain, game)


def test_penalties_work_under_autocast_and_without_autograd():
    model = make(WGANGP, DIGITS)
    x = data(model, 4).contiguous(memory_format=torch.channels_last)
    exact, _ = model.discriminator_loss(make_batch(x), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.discriminator_loss(make_batch(x), 0)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad.isfinite().all() for n, p in model.discriminator.named_parameters())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    with torch.no_grad():
        again, _ = model.discriminator_loss(make_batch(x), 0)
    torch.testing.assert_close(again, exact)


@pytest.mark.parametrize("penalty", ["gradient", "zero-centred"])
def test_penalties_leave_compiled_networks_aside(penalty):
    model = make(WGANGP, POINTS, penalty=penalty)
    x = data(model, 4)
    exact, _ = model.discriminator_loss(make_batch(x), 0)
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    model.discriminator.compile(backend=backend)
    loss, _ = model.discriminator_loss(make_batch(x), 0)
    torch.testing.assert_close(loss, exact)
    if penalty == "gradient":  # the game itself is compiled
        assert len(calls) == 1
    else:
        assert not calls
    loss.mean().backward()


# -- options -------------------------------------------------------------------------------------


def test_label_smoothing_is_a_cross_entropy_with_a_soft_target():
    model = make(GAN, POINTS, label_smoothing=0.1, batch_norm=False, dropout=0.0)
    plain = make(GAN, POINTS, batch_norm=False, dropout=0.0)
    x = data(model, 6)
    real = plain.discriminate(x)
    one_sided = F.binary_cross_entropy_with_logits(real, torch.full((6,), 0.9), reduction="none")
    difference = one_sided - F.softplus(-real)
    torch.testing.assert_close(
        model.discriminator_loss(make_batch(x), 0)[0],
        plain.discriminator_loss(make_batch(x), 0)[0] + difference,
    )


def test_instance_noise_sinks_to_zero():
    model = make(GAN, POINTS, instance_noise=0.5, instance_noise_steps=100)
    x = torch.zeros(4000, 2)
    for step, sigma in ((0, 0.5), (50, 0.25), (100, 0), (500, 0)):
        seen = model.augment(x, make_batch(x), step)
        assert seen.std().item() == pytest.approx(sigma, rel=0.05)


def test_critic_steps_decay_and_rates_are_declared():
    model = make(WGAN, DIGITS, preset="paper")
    discriminator, generator = model.stages()[0].phases
    assert (discriminator.repeat, generator.repeat) == (5, 1)
    for optim in model.optimizers().values():
        assert (optim.kind, optim.lr, optim.betas[1]) == ("rmsprop", 5e-5, 0.99)
        assert optim.schedule.kind == "constant"
    assert (model.config.clip, model.config.batch_size) == (0.01, 64)
    model = make(WGANGP, COLOUR, preset="paper", generator_lr=1e-4, discriminator_lr=4e-4)
    rates = {name: optim.lr for name, optim in model.optimizers().items()}
    assert rates == {"discriminator": 4e-4, "generator": 1e-4}
    for optim in model.optimizers().values():
        assert (optim.kind, optim.betas, optim.schedule.kind) == ("adam", (0.0, 0.9), "linear")
    assert model.config.penalty_weight == 10
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.discriminator.modules())
    # Three blocks of 256 channels up, four of 128 down, with a mean of the last maps.
    assert len(model.generator.blocks) == 3 and len(model.discriminator.blocks) == 4
    down = [*(9 * a * b + b for a, b in ((3, 128), *[(128, 128)] * 7)), 3 * 128 + 128, 128**2 + 128]
    assert count(model.discriminator) == sum(down) + 128 + 1
    x = data(model, 2)
    twice = model.discriminator.pool, model.discriminate(x)
    model.discriminator.pool = "sum"
    assert twice[0] == "mean"
    bias = model.discriminator.output.bias
    torch.testing.assert_close(model.discriminate(x) - bias, (twice[1] - bias) * 64)


def test_wgan_clips_and_logs_the_distance_with_its_sign():
    model = make(WGAN, DIGITS)
    discriminator = model.stages()[0].phases[0]
    model.after_step(discriminator, 0)
    largest = max(p.abs().max().item() for p in model.discriminator.parameters())
    assert 0 < largest <= 0.01 + 1e-9
    before = [p.clone() for p in model.generator.parameters()]
    assert max(p.abs().max().item() for p in before) > 0.02
    x = data(model, 6)
    loss, logs = model.discriminator_loss(make_batch(x), 0)
    assert logs["earth_mover"].mean().item() == pytest.approx(-loss.mean().item())
    real, fake = logs["real_score"].mean(), logs["fake_score"].mean()
    assert logs["earth_mover"].mean().item() == pytest.approx((real - fake).item(), abs=1e-6)


def test_critic_finds_the_distance_of_two_points():
    """Between points 3 apart, a critic of slope s has the loss -3 s + 10 (s - 1)^2: s is 1.15."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Flatten(0))
    adam = torch.optim.Adam(critic.parameters(), 1e-2, (0.5, 0.9))
    real, fake = torch.full((64, 1), 3.0), torch.zeros(64, 1)
    for step in range(150):
        penalty = penalties.gradient_penalty(critic, real, fake, torch.rand(64))
        # Not from the first step on: a slope of -1 is a local minimum too.
        weight = 10 if step > 30 else 0
        loss = LOSSES["wasserstein"].discriminator(critic(real), critic(fake)) + weight * penalty
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
    distance = (critic(real) - critic(fake)).mean().item()
    assert distance == pytest.approx(3 * 1.15, rel=0.03)


def test_tutorial_has_its_parameters_and_steps_apart():
    model = make(DCGAN, COLOUR, preset="cifar10-tutorial")
    assert count(model.generator) == 1_466_115
    assert count(model.discriminator) == 522_497
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.4}
    phases = model.stages()[0].phases
    assert [(p.name, p.step) for p in phases] == [
        ("real", ("discriminator",)),
        ("fake", ("discriminator",)),
        ("generator", ("generator",)),
    ]
    x = data(model, 4)
    model.eval()
    loss, logs = phases[0].loss(make_batch(x), 0)
    score = model.discriminate(x)
    torch.testing.assert_close(loss, F.softplus(-score))
    torch.testing.assert_close(logs["real_accuracy"], (score > 0).float())
    z = make_batch(x).randn(100)
    loss, logs = phases[1].loss(make_batch(x), 0)
    score = model.discriminate(model.generator(z, None))
    torch.testing.assert_close(loss, F.softplus(score))
    torch.testing.assert_close(logs["fake_accuracy"], (score <= 0).float())
    batch = make_batch(x)
    scores = [model.discriminate(model.generator(batch.randn(100), None)) for _ in range(2)]
    loss, _ = phases[2].loss(make_batch(x), 0)
    torch.testing.assert_close(loss, F.softplus(-torch.stack(scores)).mean(0))


def test_auxiliary_classifier_adds_cross_entropy_and_hides_the_class():
    classes = Classes(count=3)
    model = make(CGAN, POINTS, classes, auxiliary_weight=2.0, dropout=0.0, batch_norm=False)
    x, y = data(model, 6), torch.arange(6) % 3
    torch.testing.assert_close(model.discriminate(x, y), model.discriminate(x, 2 - y))
    logits = model.discriminator(x, None, classify=True)[1]
    fake = model.generator(make_batch(x).randn(model.config.latent_dim), y)
    of_fake = model.discriminator(fake, None, classify=True)[1]
    plain = F.softplus(-model.discriminate(x, y)) + F.softplus(model.discriminate(fake, y))
    told = [F.cross_entropy(found, y, reduction="none") for found in (logits, of_fake)]
    loss, _ = model.discriminator_loss(make_batch(x, y), 0)
    torch.testing.assert_close(loss, plain + 2 * (told[0] + told[1]))
    loss, _ = model.generator_loss(make_batch(x, y), 0)
    torch.testing.assert_close(loss, F.softplus(-model.discriminate(fake, y)) + 2 * told[1])


def test_lsgan_is_a_dcgan_with_another_loss():
    model, other = make(LSGAN, DIGITS), make(DCGAN, DIGITS)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert dataclasses.asdict(model.config) == {
        **dataclasses.asdict(other.config),
        "loss": "least-squares",
    }


# -- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [CGAN, WGANGP])
def test_classes_may_be_mixed(cls):
    model = make(cls, POINTS, Classes(count=3), conditional=True).eval()
    z = torch.randn(3, model.config.latent_dim, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model.decode(z, y), model.decode(z, F.one_hot(y, 3).float()))
    halves = model.decode(z, torch.full((3, 3), 1 / 3))
    assert (halves - model.decode(z, y)).abs().max() > 1e-4
    with pytest.raises(ConfigError, match=re.escape(f"this {cls.__name__} is conditional")):
        model.decode(z)


def test_truncated_noise_is_a_cut_normal():
    model = make(GAN, POINTS, latent_dim=500)
    options = model.Sampling(truncation=0.5, temperature=2.0)
    z = model._latent(Noise(0, range(200)), options) / 2
    assert z.abs().max().item() <= 0.5 + 1e-6
    # Of a normal cut at c, the variance is 1 - 2 c phi(c) / (2 Phi(c) - 1).
    c = 0.5
    density, inside = math.exp(-c * c / 2) / math.sqrt(math.tau), math.erf(c / math.sqrt(2))
    assert z.var().item() == pytest.approx(1 - 2 * c * density / inside, rel=0.02)
    assert z.mean().item() == pytest.approx(0, abs=0.005)


class Line(nn.Module):
    """x = z, seen by a discriminator whose logit is the slope times x."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x, label):
        return x if self.slope is None else self.slope * x[:, 0]


def test_candidates_are_chosen_by_the_ratio_of_densities():
    """Normal noise under a logit a x: the density exp(a x) N(0, 1) is N(a, 1), up to a factor."""
    model = make(GAN, Vector(features=1), latent_dim=1)
    model.generator, model.discriminator = Line(None), Line(0.8)
    noise = Noise(0, range(4000))
    x = model.draw(noise, None, model.Sampling(candidates=64))
    assert x.mean().item() == pytest.approx(0.8, abs=0.06)
    assert x.std().item() == pytest.approx(1, abs=0.05)
    one = model.draw(Noise(0, range(5)), None, model.Sampling(candidates=8))
    again = model.draw(Noise(0, range(3, 5)), None, model.Sampling(candidates=8))
    assert torch.equal(one[3:], again)


def test_candidates_are_the_best_where_logits_are_no_ratios():
    model = make(GAN, Vector(features=1), latent_dim=1, loss="hinge")
    model.generator, model.discriminator = Line(None), Line(0.8)
    noise = Noise(0, range(6))
    tries = torch.stack([noise.randn(1) for _ in range(5)])
    x = model.draw(Noise(0, range(6)), None, model.Sampling(candidates=5))
    assert torch.equal(x, tries.max(0).values)


@pytest.mark.parametrize(
    ("cls", "changes", "spec", "text"),
    [
        (GAN, {"label_smoothing": 0.1, "loss": "relativistic"}, POINTS, "of single samples"),
        (GAN, {"auxiliary_weight": 1.0}, POINTS, "set conditional = True"),
        (GAN, {"penalty_every": 0}, POINTS, "penalty_every = 0"),
        (WGAN, {"widths": ()}, DIGITS, "is empty"),
        (WGAN, {"network": "convolutional"}, POINTS, "use mlp"),
        (WGAN, {"network": "residual"}, COLOUR, "3 values; images of 32 px need 4"),
        (CGAN, {}, POINTS, "needs data with classes"),
        (DCGAN, {"separate_steps": True, "critic_steps": 2}, DIGITS, "one critic step"),
        (DCGAN, {"separate_steps": True, "penalty": "r1"}, DIGITS, "penalty = r1"),
        (DCGAN, {"network": "tutorial"}, DIGITS, "as many values as widths"),
        (
            DCGAN,
            {"network": "tutorial", "widths": (8,), "discriminator_widths": (8,)},
            DIGITS,
            "full 8 px",
        ),
    ],
)
def test_wrong_choices_say_so(cls, changes, spec, text):
    with pytest.raises(ConfigError, match=text):
        make(cls, spec, **changes)


def test_tutorial_is_for_its_size():
    with pytest.raises(ConfigError, match="images of 32 px, not 8"):
        DCGAN.preset("cifar10-tutorial", DIGITS)
