"""The diffusion model and its U-Net."""

import math
import re
from typing import Any

import pytest
import torch

from poiesis.config import override
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch, autocast
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.nn.unet import UNet, sinusoidal_embedding
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens

TINY: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "groups": 4,
    "timesteps": 50,
}
DIGIT = Grid(channels=1, size=(8, 8), levels=17)


def build(classes=3, **options):
    config = DDPM.Config(**{**TINY, **options})
    torch.manual_seed(0)
    return DDPM(config, DDPM.view(config, DIGIT), Classes(count=classes) if classes else None)


def stir(model):
    """Give every parameter a value, so that zero-initialised layers take part."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def make_batch(n=8, key=0, condition=True):
    g = torch.Generator().manual_seed(5)
    x = torch.rand(n, 1, 8, 8, generator=g) * 2 - 1
    classes = torch.arange(n) % 3 if condition else None
    return Batch(
        x=x, condition=classes, index=torch.arange(n), draws=Draws((key,), total=n), size=n
    )


# -- the network ----------------------------------------------------------------------------------


def test_cifar10_network_has_the_published_number_of_parameters():
    spec = Grid(channels=3, size=(32, 32))
    for name in ("paper", "cifar10"):
        config = DDPM.preset(name, spec)
        with torch.device("meta"):
            unet = UNet(
                image_channels=3,
                channels=config.channels,
                multipliers=config.multipliers,
                blocks=config.blocks,
                attention=[size in config.attention for size in (32, 16, 8, 4)],
                groups=config.groups,
                dropout=config.dropout,
            )
        # The figure of the official checkpoint google/ddpm-cifar10-32
        assert sum(p.numel() for p in unet.parameters()) == 35_746_307


def test_time_embedding_is_sines_then_cosines():
    emb = sinusoidal_embedding(torch.tensor([0, 7]), 8)
    assert emb[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    frequencies = [1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]
    expected = [math.sin(7 * f) for f in frequencies] + [math.cos(7 * f) for f in frequencies]
    assert emb[1].tolist() == pytest.approx(expected, abs=1e-5)


def test_fresh_residual_branches_are_silent():
    model = build()
    x = make_batch().x
    assert torch.count_nonzero(model.unet(x, torch.zeros(8).long())) == 0
    level = model.unet.down_blocks[0]
    torch.testing.assert_close(
        level.resnets[0](torch.ones(1, 8, 8, 8), torch.ones(1, 32)), torch.ones(1, 8, 8, 8)
    )


def test_attention_is_softmax_of_scaled_products():
    model = stir(build())
    attention = model.unet.mid_block.attentions[0]
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    h = attention.group_norm(x).reshape(2, 16, 16).mT  # b, pixels, channels
    q, k, v = (f(h) for f in (attention.to_q, attention.to_k, attention.to_v))
    out = attention.to_out((q @ k.mT / 16**0.5).softmax(-1) @ v)
    expected = x + out.mT.reshape(2, 16, 4, 4)
    torch.testing.assert_close(attention(x), expected)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(attention(channels_last), expected)


# -- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (20, 12), (31, 17), (64, 64)])
@pytest.mark.parametrize("name", ["default", "paper"])
def test_presets_fit_any_size(name, size):
    spec = Grid(channels=3, size=size)
    config = DDPM.preset(name, spec)
    view = DDPM.view(config, spec)
    assert view.domain == "signed" and view.levels == 256
    unit = 2 ** (len(config.multipliers) - 1)
    assert all(0 <= v - s < unit and v % unit == 0 for v, s in zip(view.size, size, strict=True))
    with torch.device("meta"):
        model = DDPM(config, view, None)
        out = model.unet(torch.zeros(2, *view.shape), torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, *view.shape)


@pytest.mark.parametrize(
    "spec",
    [Tokens(vocabulary=9, length=4), Grid(channels=1, size=(2, 4, 4, 4))],
)
def test_other_data_is_refused(spec):
    with pytest.raises(SpecError, match="ddpm learns images"):
        DDPM.preset("default", spec)
    with pytest.raises(SpecError, match="ddpm learns images"):
        DDPM.view(DDPM.Config(**TINY), spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 10}, "channels = 10 is not a multiple of groups = 4"),
        ({"timesteps": 2}, "timesteps = 2 is outside"),
        ({"label_dropout": 1.5}, "label_dropout = 1.5 is outside"),
        ({"multipliers": ()}, "multipliers is empty"),
        ({"attention": (16,)}, "attention = 16 is not a resolution of this network; it has 8, 4"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        build(**options)


def test_wrong_sampling_options_are_named():
    with pytest.raises(ConfigError, match="eta = 2"):
        DDPM.Sampling(eta=2)
    with pytest.raises(ConfigError, match=r"steps = 51 is outside \[1, 50\]"):
        build().sample(1, options=DDPM.Sampling(steps=51))


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_perfect_network_has_no_loss_and_denoises_exactly(prediction, monkeypatch):
    model = build(prediction=prediction)
    batch = make_batch()
    x0 = batch.x

    def oracle(x_t, t, condition=None):
        alpha, sigma = model.alpha[t].view(-1, 1, 1, 1), model.sigma[t].view(-1, 1, 1, 1)
        eps = (x_t - alpha * x0) / sigma
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]

    monkeypatch.setattr(model.unet, "forward", oracle)
    value, logs = model.loss(batch, 0)
    assert value.shape == (8,) and value.dtype == torch.float32
    assert float(value.detach().max()) < 1e-8
    assert set(logs) == {"mse"}
    x_t = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.arange(8) * 6
    torch.testing.assert_close(model.denoiser(x_t, t), x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_an_untrained_loss_is_the_targets_second_moment(prediction):
    # The fresh network says 0; E‖ε‖² = 1, E‖v‖² = α² + σ² E‖x0‖².
    model = build(prediction=prediction)
    batch = make_batch(2000)
    value = float(model.loss(batch, 0)[0].detach().mean())
    power = float(batch.x.square().mean())
    sigma2 = float(model.sigma.square().mean())
    expected = {"eps": 1.0, "x0": power, "v": 1 - sigma2 + sigma2 * power}[prediction]
    assert value == pytest.approx(expected, rel=0.03)


def test_gradients_reach_every_parameter():
    model = stir(build())
    model.loss(make_batch(64), 0)[0].mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_are_dropped_per_sample(monkeypatch):
    model = build(label_dropout=0.25)
    seen = []

    def spy(x, t, condition=None):
        seen.append(condition)
        return torch.zeros_like(x)

    monkeypatch.setattr(model.unet, "forward", spy)
    batch = make_batch(4000)
    model.loss(batch, 0)
    dropped = seen[0] == 3
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)  # 4 standard errors
    assert torch.equal(seen[0][~dropped], batch.condition[~dropped])


def test_validation_is_repeatable_and_spreads_the_levels(monkeypatch):
    model = stir(build())
    values = [model.validate(make_batch())["mse"] for _ in range(2)]
    assert torch.equal(*values)
    levels = []
    monkeypatch.setattr(
        model.unet, "forward", lambda x, t, c=None: levels.append(t) or torch.zeros_like(x)
    )
    model.validate(make_batch(100))
    counts = torch.bincount(levels[0] // 10, minlength=5)
    assert counts.min() >= 18 and counts.max() <= 22


def test_bf16_autocast_keeps_losses_and_samples_float32():
    model = stir(build())
    with autocast(torch.device("cpu"), "bf16"):
        value, _ = model.loss(make_batch(), 0)
        estimate = model.denoiser(make_batch().x, torch.arange(8))
    assert value.dtype == estimate.dtype == torch.float32
    options = DDPM.Sampling(steps=3)
    low = model.sample(2, options=options, precision="bf16")
    full = model.sample(2, options=options, precision="fp32")
    assert low.dtype == torch.float32
    assert float((low - full).abs().mean()) < 0.1


# -- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        DDPM.Sampling(),
        DDPM.Sampling(guidance=3.0, clip="dynamic"),
        DDPM.Sampling(sampler="ddim", steps=7, eta=0.5, spacing="quadratic"),
        DDPM.Sampling(sampler="ddim", steps=5, spacing="uniform", clip="none"),
        DDPM.Sampling(sampler="ancestral", steps=12),
    ],
)
def test_samples_depend_on_their_own_seed_only(options):
    model = stir(build())
    whole = model.sample(6, seed=4, options=options, precision="fp32")
    assert whole.shape == (6, 1, 8, 8)
    assert whole.abs().max() <= 1
    parts = model.sample(6, seed=4, options=options, precision="fp32", batch_size=4)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    later = model.sample(2, seed=4, first=4, options=options, precision="fp32")
    torch.testing.assert_close(whole[4:], later, atol=1e-4, rtol=1e-4)
    other = model.sample(6, seed=5, options=options, precision="fp32")
    assert not torch.allclose(whole, other, atol=1e-2)


def test_guidance_moves_between_open_and_exaggerated_class():
    model = stir(build())
    x_t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, c = torch.full((4,), 20), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        plain, free = model.denoiser(x_t, t, c), model.denoiser(x_t, t)
        for scale in (0.0, 1.0, 2.5):
            got = model.guided(x_t, t, c, DDPM.Sampling(guidance=scale))
            torch.testing.assert_close(got, free + scale * (plain - free), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, free, atol=1e-3)


def test_an_unconditional_model_ignores_classes():
    model = stir(build(conditional=False))
    assert model.condition is None and model.unet.class_embedding is None
    model.loss(make_batch(), 0)
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert stir(build(classes=0)).sample(2).shape == (2, 1, 8, 8)


# -- likelihood -----------------------------------------------------------------------------------


def exact_denoiser(model, values, weights):
    """E[x0 | x_t] of pixels drawn independently from a few values."""

    def denoise(x_t, t, condition=None):
        alpha, sigma = model.alpha[t].view(-1, 1, 1, 1), model.sigma[t].view(-1, 1, 1, 1)
        shape = (-1, 1, 1, 1, 1)
        logits = weights.log().view(shape) - 0.5 * ((x_t - alpha * values.view(shape)) / sigma) ** 2
        return (logits.softmax(0) * values.view(shape)).sum(0)

    return denoise


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_holds_and_is_tight_for_an_exact_denoiser(schedule, monkeypatch):
    model = build(timesteps=500, schedule=schedule)
    values = torch.linspace(-1, 1, 17)
    weights = torch.zeros(17)
    weights[[0, 5, 16]] = torch.tensor([0.5, 0.3, 0.2])
    monkeypatch.setattr(model, "denoiser", exact_denoiser(model, values, weights))
    g = torch.Generator().manual_seed(0)
    level = torch.multinomial(weights, 24 * 64, replacement=True, generator=g)
    x = values[level].view(24, 1, 8, 8)
    truth = -weights[level].log().view(24, 64).sum(1).mean()  # nats per image of these very images
    result = model.log_prob(x, samples=500)
    assert (result.kind, result.measure, result.dims) == ("bound", "discrete", 64)
    bound = -result.nats
    # Common to both: the images. What is left is the noise of x_t.
    assert truth * 0.99 < bound.mean() < truth * 1.08

    part = model.log_prob(x, samples=25)
    assert re.fullmatch(r"VLB, 25 of \d{3} steps", part.detail)
    spread = (part.nats - result.nats).std() / 24**0.5
    assert abs(float(part.nats.mean() - result.nats.mean())) < 4 * float(spread)
    # The stated standard error is honest: about the true deviation, or a little above.
    ratio = float(part.error.square().mean().sqrt() / (part.nats - result.nats).std())
    assert 0.5 < ratio < 3


def test_a_wrong_denoiser_pays_for_it(monkeypatch):
    model = build(timesteps=100)
    x = torch.ones(4, 1, 8, 8)
    monkeypatch.setattr(model, "denoiser", lambda x_t, t, c=None: torch.zeros_like(x_t))
    assert (model.log_prob(x, samples=100).bits_per_dim > 10).all()


# -- quality --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_more_of_digits_than_their_covariance():
    """A minute of training beats the best linear denoiser, which knows mean and covariance."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    train, test = x[:1500], x[1500:]
    config = override(DDPM.preset("default", DIGIT), {"conditional": False})
    torch.manual_seed(0)
    model = DDPM(config, DDPM.view(config, DIGIT))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = 300
    for step in range(steps):
        draws = Draws(("train", step), total=64)
        rows = draws.randint(len(train))
        batch = Batch(x=train[rows], condition=None, index=rows, draws=draws, size=64)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, step / 50) * (1 - step / steps)
        optimizer.zero_grad()
        model.loss(batch, step)[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    mean = train.flatten(1).mean(0)
    cov = torch.cov(train.flatten(1).T)
    ours, linear = [], []
    # At higher levels the noise hides all but mean and covariance, and linear is nearly optimal.
    for level in (100, 300):
        alpha, sigma = float(model.alpha[level]), float(model.sigma[level])
        eps = torch.randn(test.shape, generator=torch.Generator().manual_seed(level))
        x_t = alpha * test + sigma * eps
        gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(64))
        wiener = mean + (x_t.flatten(1) - alpha * mean) @ gain.T
        with torch.no_grad():
            guess = model.denoiser(x_t, torch.full((len(x_t),), level))
        ours.append(float((guess - test).square().mean()))
        linear.append(float((wiener - test.flatten(1)).square().mean()))
    assert sum(ours) < 0.85 * sum(linear), (ours, linear)
