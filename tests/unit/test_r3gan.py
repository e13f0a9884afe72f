"""R3GAN: its sizes, its schedules, and that its cheap penalties are the dear ones."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch
from poiesis.models.gans.r3gan import R3GAN, _along
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens, Vector
from poiesis.training import optimizers as optim
from poiesis.training.ema import Average

DIGITS = Grid(channels=1, size=(8, 8), levels=17)
COLOUR = Grid(channels=3, size=(32, 32))
POINTS = Vector(features=2)


def make(spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(R3GAN.preset(preset, spec), **changes)
    return R3GAN(config, R3GAN.view(config, spec), condition)


def make_batch(x, condition=None):
    b = len(x)
    draws = Draws(("test",), total=b)
    return Batch(x=x, condition=condition, index=torch.arange(b), draws=draws, size=b)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_cifar10_has_the_size_and_recipe_of_the_official_code():
    with torch.device("meta"):
        model = make(COLOUR, Classes(count=10), "cifar10")
    # 20.8M and 21.3M in the paper's table, by class.
    assert count(model.generator) == 20_781_952
    assert count(model.discriminator) == 21_280_512
    blocks = [m for m in model.generator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {m.groups for m in blocks} == {1, 96}
    c = model.config
    assert (c.loss, c.penalty, c.batch_size, c.latent_dim) == (
        "relativistic",
        "zero-centred",
        512,
        64,
    )
    found = {}
    for progress in (0.0, 0.5, 1.0):
        model.progress = progress
        half = math.log(0.5) / math.log(model.ema()["generator"]) * c.batch_size
        found[progress] = (model.penalty_weight(), model.augment_chance(), half)
    assert found[0.0][:2] == pytest.approx((0.05, 0.0)) and found[0.0][2] < c.batch_size
    assert found[0.5] == pytest.approx((0.0275, 0.275, 2.5e6))
    assert found[1.0] == pytest.approx((0.005, 0.55, 5e6))


def test_rate_and_memory_follow_a_cosine():
    model = make(POINTS, generator_lr=2e-4, beta1=0.0, final_lr=0.25)
    declared = model.optimizers()["generator"]
    optimizer = optim.build(model, declared)
    for step, lr, beta2 in ((0, 2e-4, 0.9), (50, 1.25e-4, 0.945), (100, 5e-5, 0.99)):
        optim.follow(optimizer, declared, step, 100)
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(lr)
        assert group["betas"] == pytest.approx((0.0, beta2))


def test_averaged_weights_follow_their_half_life():
    model = make(POINTS, ema_images=1000.0, batch_size=100)
    average = Average(model)
    name = "generator.last.weight"
    weight = model.generator.last.weight
    model.progress = 1.0
    with torch.no_grad():
        average.shadow[name].zero_()
        weight.fill_(1.0)
    for step in range(1000, 1010):  # ten batches of 100: one half-life
        average.update(step)
    torch.testing.assert_close(average.shadow[name], torch.full_like(weight, 0.5))
    model.progress = 0.0
    average.update(1010)
    torch.testing.assert_close(average.shadow[name], weight.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [4, 8, 32])
def test_resampling_is_the_filter_of_the_paper(layout, size):
    """[1, 2, 1], and [1, 1] for the factor of two: torch's convolutions by channels."""
    x = torch.randn(2, 5, size, size).to(memory_format=layout)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    kernel = torch.outer(taps, taps)[None, None].expand(5, 1, 4, 4)
    down = F.conv2d(x, kernel, stride=2, padding=1, groups=5)
    up = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=5)
    torch.testing.assert_close(_along(_along(x, 2, False), 3, False), down)
    torch.testing.assert_close(_along(_along(x, 2, True), 3, True), up)
    inside = F.interpolate(x, scale_factor=2, mode="bilinear")[..., 1:-1, 1:-1]
    torch.testing.assert_close(up[..., 1:-1, 1:-1], inside)


def test_networks_begin_as_the_paper_says():
    model = make(COLOUR, widths=(64, 64, 64, 64), patch=1, group=16)
    convolutions = {
        name: m for name, m in model.discriminator.named_modules() if hasattr(m, "weight")
    }
    for name, module in convolutions.items():
        inside = name.endswith("linear") and ("first" in name or "middle" in name)
        gain = math.sqrt(2 / 1.04) * 4 ** (-1 / 4) if inside else 1.0
        gain = 0.0 if ".last" in name else gain
        spread = gain / math.sqrt(module.weight[0].numel())
        assert float(module.weight.detach().std()) == pytest.approx(spread, rel=0.15), name
    # Blocks begin as the identity, so the score is linear in the image.
    x, y = torch.randn(2, 2, 3, 32, 32)
    d = model.discriminator
    torch.testing.assert_close(d(x + y, None), d(x, None) + d(y, None), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (DIGITS, {"group": 8}),
        (DIGITS, {"group": 8, "augment": "diffaugment", "instance_noise": 0.3}),
        (Grid(channels=3, size=(8, 8)), {"conditional": True, "loss": "hinge", "augment": "ada"}),
        (POINTS, {"conditional": True, "label_smoothing": 0.1, "loss": "least-squares"}),
    ],
)
def test_cheap_penalties_are_those_of_differentiating_twice(spec, options, monkeypatch):
    """Loss and gradients equal those of autograd through its own gradient, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        model = make(spec, Classes(count=3), widths=(8, 16), **{"group": 16, **options})
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # no layer at zero
        if model.adaptation is not None:
            model.adaptation.p.fill_(0.8)
        x = torch.randn(6, *model.spec.shape)
        y = torch.arange(6) % 3 if model.condition else None
        changes = []

        def augmentation(shape, draws, step, inner=model.augmentation):
            changes.append(inner(shape, draws, step))
            return changes[-1]

        monkeypatch.setattr(model, "augmentation", augmentation)
        values, logs = model.discriminator_loss(make_batch(x, y), 0)
        values.mean().backward()
        ours = [p.grad for p in model.discriminator.parameters()]
        model.zero_grad()

        fake = model.generator(make_batch(x, y).randn(model.config.latent_dim), y).detach()
        both = torch.cat((x, fake)).requires_grad_()
        score = model.discriminator(changes[0](both), None if y is None else torch.cat((y, y)))
        (slope,) = torch.autograd.grad(score.sum(), both, create_graph=True)
        squares = slope.flatten(1).square().sum(1)
        penalty = model.config.penalty_weight / 2 * (squares[:6] + squares[6:])
        expected = model._game(score[:6], score[6:]) + penalty
        expected.mean().backward()
        assert penalty.min() > 1e-4
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(logs["penalty"], penalty)
        for a, b in zip(ours, model.discriminator.parameters(), strict=True):
            # The pairing loss itself is in float32.
            torch.testing.assert_close(a, b.grad, rtol=1e-5, atol=1e-6 * float(b.grad.abs().max()))
    finally:
        torch.set_default_dtype(torch.float32)


def test_in_bf16_the_gradient_has_the_direction_of_float32():
    model = make(COLOUR, widths=(32, 32, 32), group=16).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(16, 3, 32, 32)
    found = []
    for low in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            values, _ = model.discriminator_loss(make_batch(x), 0)
        assert values.dtype == torch.float32
        values.mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.discriminator.parameters()]))
    assert F.cosine_similarity(*found, dim=0) > 0.99


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_default_takes_every_size(size, channels):
    model = make(Grid(channels=channels, size=(size, size)))
    x = model.sample(2)
    assert x.shape == (2, channels, size, size) and x.abs().max() <= 1
    assert model.discriminate(x).shape == (2,)


def test_learns_classes():
    """Class 0 is black and class 1 white; after a few steps, so are the samples asked for."""
    model = make(DIGITS, Classes(count=2), conditional=True, group=16, widths=(32, 32))
    y = torch.arange(32) % 2
    x = (2.0 * y - 1)[:, None, None, None].expand(32, 1, 8, 8)
    steps = {
        name: torch.optim.Adam(model.get_submodule(name).parameters(), lr=2e-3, betas=(0.0, 0.9))
        for name in ("discriminator", "generator")
    }
    for step in range(100):
        for phase in model.stages()[0].phases:
            model.zero_grad()
            draws = Draws((step, phase.name), total=32)
            batch = Batch(x=x, condition=y, index=y, draws=draws, size=32)
            phase.loss(batch, step)[0].mean().backward()
            steps[phase.name].step()
    means = model.sample(8).mean((1, 2, 3))
    assert means[1::2].min() > 0.5 and means[::2].max() < -0.5
    with pytest.raises(ConfigError, match="give the class"):
        model.discriminate(x)


@pytest.mark.parametrize(
    ("changes", "spec", "error", "text"),
    [
        ({}, Tokens(vocabulary=9, length=4), SpecError, "images of 1 to 4 channels"),
        ({"widths": (64,)}, COLOUR, ConfigError, "make 8 px, not the 32 px"),
        ({"widths": ()}, COLOUR, ConfigError, "is empty"),
        ({"widths": (20, 20, 20)}, COLOUR, ConfigError, "no multiple of group = 32"),
        ({"patch": 3}, COLOUR, ConfigError, "patch = 3"),
        ({"auxiliary_weight": 1.0, "conditional": True}, COLOUR, ConfigError, "a classifier"),
        ({"decay": True}, COLOUR, ConfigError, "final_lr = 0"),
    ],
)
def test_wrong_choices_say_so(changes, spec, error, text):
    with pytest.raises(error, match=text):
        make(spec, **changes)
