"""GAN and DCGAN: parameter counts, losses in closed form, gradients' ways, wrong inputs."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch
from poiesis.models.capabilities import of
from poiesis.models.gans.dcgan import DCGAN
from poiesis.models.gans.gan import GAN
from poiesis.models.gans.losses import LOSSES
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens, Vector

GRAY = Grid(channels=1, size=(28, 28))
DIGITS = Grid(channels=1, size=(8, 8), levels=17)


def make(cls, spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(cls.preset(preset, spec), **changes)
    return cls(config, cls.view(config, spec), condition)


def make_batch(x, condition=None, step=0, phase="generator"):
    b = len(x)
    draws = Draws(("test", phase, step), total=b)
    return Batch(x=x, condition=condition, index=torch.arange(b), draws=draws, size=b)


def data(model, n):
    return 2 * torch.rand(n, *model.spec.shape, generator=torch.Generator().manual_seed(1)) - 1


def count(module):
    return sum(p.numel() for p in module.parameters())


def steps(model, x, n, y=None):
    """Train n steps on all of x, as the engine would."""
    adam = {
        name: torch.optim.Adam(model.get_submodule(o.networks[0]).parameters(), o.lr, o.betas)
        for name, o in model.optimizers().items()
    }
    for step in range(n):
        for phase in model.stages()[0].phases:
            loss, _ = phase.loss(make_batch(x, y, step, phase.name), step)
            (name,) = phase.step
            adam[name].zero_grad()
            loss.mean().backward()
            adam[name].step()


def test_losses_are_the_papers_formulas():
    loss = LOSSES["non-saturating"]
    real, fake = torch.tensor([0.3, -2.0, 0.0]), torch.tensor([-1.0, 4.0, 0.0])
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    expected = -d_real.log() - (1 - d_fake).log()
    torch.testing.assert_close(loss.discriminator(real, fake), expected)
    torch.testing.assert_close(loss.generator(fake, None), -d_fake.log())
    # At the optimum D = 1/2 everywhere: log 4, the value of the game (theorem 1).
    assert loss.discriminator(real[2:], fake[2:]).item() == pytest.approx(math.log(4))
    # The non-saturating gradient does not vanish where D is sure, the minimax one does.
    for name, slope in (("non-saturating", -1), ("minimax", 0)):
        sure = torch.tensor([-20.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(LOSSES[name].generator(sure, None), sure)
        assert gradient.item() == pytest.approx(slope, abs=1e-6)


def test_gan_tutorial_has_its_published_parameters():
    model = make(GAN, GRAY, preset="tutorial")
    assert count(model.generator) == 1_486_352
    assert count(model.discriminator) == 533_505
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    assert {m.p for m in model.discriminator.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    optim = model.optimizers()["generator"]
    assert (optim.lr, optim.betas) == (2e-4, (0.5, 0.999))
    assert [p.name for p in model.stages()[0].phases] == ["discriminator", "generator"]


@pytest.mark.parametrize(
    ("size", "generator", "discriminator"),
    [
        # Weights of 4x4 kernels, two BatchNorm values a channel, bias at the ends only.
        (
            64,
            16 * (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3 + 2 * 1920,
            16 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024) + 128 + 1 + 2 * 1792,
        ),
        (
            32,
            16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64) + 9 * 64 * 3 + 3 + 2 * 960,
            9 * 3 * 64 + 64 + 16 * (64 * 128 + 128 * 256 + 256 * 512 + 512) + 1 + 2 * 896,
        ),
    ],
)
def test_dcgan_paper_has_the_papers_widths(size, generator, discriminator):
    model = make(DCGAN, Grid(channels=3, size=(size, size)), preset="paper")
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


def test_dcgan_paper_starts_as_the_paper_says():
    model = make(DCGAN, Grid(channels=3, size=(64, 64)), preset="paper")
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.numel() > 9999:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(module.weight.mean().item()) < 1e-3
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
    optim = model.optimizers()["discriminator"]
    assert (optim.lr, optim.betas) == (2e-4, (0.5, 0.999))


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_dcgan_takes_every_power_of_two(size):
    model = make(DCGAN, Grid(channels=3, size=(size, size)))
    assert model.sample(2).shape == (2, 3, size, size)
    assert model.discriminate(torch.zeros(2, 3, size, size)).shape == (2,)


@pytest.mark.parametrize("widths", [(16, 8, 4), (16, 8, 4, 4)])
def test_dcgan_ends_at_half_or_full_size(widths):
    model = make(DCGAN, Grid(channels=1, size=(32, 32)), widths=widths)
    assert model.sample(2).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("size", [(28, 28), (17, 20), (5, 5)])
def test_dcgan_pads_to_the_next_power_of_two(size):
    view = DCGAN.view(DCGAN.default(Grid(channels=1, size=size)), Grid(channels=1, size=size))
    side = {28: 32, 17: 32, 5: 8}[size[0]]
    assert view == Grid(channels=1, size=(side, side), domain="signed")


@pytest.mark.parametrize(
    ("cls", "spec"),
    [(GAN, GRAY), (GAN, Vector(features=3)), (GAN, DIGITS), (DCGAN, DIGITS), (DCGAN, GRAY)],
)
def test_phases_give_one_loss_a_sample_and_reach_their_network(cls, spec):
    model = make(cls, spec)
    x = data(model, 4)
    for phase in model.stages()[0].phases:
        model.zero_grad()
        loss, _ = phase.loss(make_batch(x), 0)
        assert loss.shape == (4,) and loss.dtype == torch.float32
        loss.mean().backward()
        network = model.get_submodule(phase.name)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        if phase.name == "discriminator":
            assert all(p.grad is None for p in model.generator.parameters())
    assert of(model) == ["decode", "draw_latent", "discriminate"]
    sample = model.sample(3)
    assert sample.shape == (3, *model.spec.shape)
    if model.spec.domain == "signed":
        assert sample.abs().max() <= 1


def test_losses_belong_to_their_samples():
    model = make(GAN, GRAY, dropout=0.0)
    x = data(model, 4).requires_grad_()
    loss, _ = model.discriminator_loss(make_batch(x), 0)
    (gradient,) = torch.autograd.grad(loss[2], x)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False]


def test_dcgan_normalises_real_and_fake_apart():
    model = make(DCGAN, DIGITS)
    x = data(model, 8)
    expected = F.softplus(-copy.deepcopy(model).discriminate(x))
    with torch.no_grad():
        z = make_batch(x).randn(100)
        fake = copy.deepcopy(model).generator(z, None)
        expected = expected + F.softplus(copy.deepcopy(model).discriminate(fake))
    loss, logs = model.discriminator_loss(make_batch(x), 0)
    torch.testing.assert_close(loss, expected)
    assert set(logs) == {"real_score", "fake_score", "real_accuracy", "fake_accuracy"}


def test_gan_learns_a_gaussian():
    g = torch.Generator().manual_seed(0)
    mean, spread = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.2])
    model = make(GAN, Vector(features=2), dropout=0.0)
    torch.manual_seed(0)
    steps(model, mean + spread * torch.randn(128, 2, generator=g), 300)
    sample = model.sample(1000)
    assert (sample.mean(0) - mean).abs().max() < 0.5
    assert (sample.std(0) / spread).log().abs().max() < math.log(3)


def test_dcgan_learns_classes():
    """Class 0 is black and class 1 white; after a few steps, so are the samples asked for."""
    model = make(DCGAN, DIGITS, Classes(count=2), conditional=True)
    y = torch.arange(32) % 2
    x = (2.0 * y - 1)[:, None, None, None].expand(32, 1, 8, 8)
    steps(model, x, 40, y)
    means = model.sample(8).mean((1, 2, 3))
    assert means[1::2].min() > 0.6 and means[::2].max() < -0.6
    real = torch.ones(2, 1, 8, 8)
    score = model.eval().discriminate(real, torch.tensor([0, 1]))
    assert score[1] > score[0]
    with pytest.raises(ConfigError, match="conditional"):
        model.discriminate(real)


@pytest.mark.parametrize(("cls", "spec"), [(GAN, GRAY), (DCGAN, DIGITS)])
def test_sampling_does_not_depend_on_the_batch_size(cls, spec):
    model = make(cls, spec)
    torch.testing.assert_close(
        model.sample(5, seed=2, batch_size=2), model.sample(5, seed=2, batch_size=5)
    )


@pytest.mark.parametrize(("cls", "spec"), [(GAN, GRAY), (DCGAN, GRAY)])
def test_they_run_under_bf16_autocast(cls, spec):
    model = make(cls, spec)
    x = data(model, 4)
    for phase in model.stages()[0].phases:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = phase.loss(make_batch(x), 0)
        assert loss.dtype == torch.float32 and loss.isfinite().all()
        loss.mean().backward()
    assert model.sample(2, precision="bf16").dtype == torch.float32


@pytest.mark.parametrize(
    ("cls", "changes", "spec", "error", "text"),
    [
        (GAN, {}, Tokens(vocabulary=9, length=4), SpecError, "images of 1 to 4 channels"),
        (DCGAN, {}, Vector(features=4), SpecError, "images of 1 to 4 channels"),
        (DCGAN, {}, Grid(channels=1, size=(300, 300)), SpecError, "up to 256 px"),
        (DCGAN, {"widths": (8,)}, GRAY, ConfigError, "images of 32 px need 3 or 4"),
        (DCGAN, {"widths": ()}, GRAY, ConfigError, "is empty"),
        (DCGAN, {"batch_size": 1}, GRAY, ConfigError, "batch_size = 1"),
        (DCGAN, {"conditional": True}, GRAY, ConfigError, "needs data with classes"),
        (GAN, {"dropout": 1.0}, GRAY, ConfigError, "dropout = 1"),
        (GAN, {"generator_widths": ()}, GRAY, ConfigError, "generator_widths"),
    ],
)
def test_wrong_choices_say_so(cls, changes, spec, error, text):
    with pytest.raises(error, match=text):
        make(cls, spec, **changes)
