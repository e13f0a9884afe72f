"""SNGAN, SAGAN and BigGAN: published sizes, the networks' maths against the plain formulas."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch
from poiesis.models.gans.biggan import BigGAN
from poiesis.models.gans.resnet import SelfAttention, downsampled_conv, upsampled_conv
from poiesis.models.gans.sagan import SAGAN
from poiesis.models.gans.sngan import SNGAN
from poiesis.nn.batch_norm import ConditionalBatchNorm
from poiesis.nn.labels import LabelEmbedding
from poiesis.nn.spectral_norm import SpectralConv2d, SpectralLinear
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Vector

CIFAR = Grid(channels=3, size=(32, 32))
TEN = Classes(count=10)
SMALL = {"generator_widths": (16, 16, 8, 8), "discriminator_widths": (8, 16, 16), "final_size": 4}


def make(cls, spec, condition=None, preset="default", **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(cls.preset(preset, spec), **changes)
    return cls(config, cls.view(config, spec), condition)


def count(module):
    return sum(p.numel() for p in module.parameters())


def batch_of(x, condition=None):
    draws = Draws(("test",), total=len(x))
    return Batch(x=x, condition=condition, index=torch.arange(len(x)), draws=draws, size=len(x))


# -- published sizes -----------------------------------------------------------------------------


def conv(a, b, k=3):
    return a * b * k * k + b


def test_sngan_has_the_networks_of_tables_3_and_4():
    model = make(SNGAN, CIFAR, preset="paper")
    # 4x4x256 from the noise, three blocks up, BatchNorm, 3x3 convolution.
    block = 2 * conv(256, 256) + conv(256, 256, 1) + 2 * 512
    assert count(model.generator) == 129 * 4096 + 3 * block + 512 + conv(256, 3) == 4_276_739
    first = conv(3, 128) + conv(128, 128) + conv(3, 128, 1)
    half = 2 * conv(128, 128) + conv(128, 128, 1)
    assert count(model.discriminator) == first + half + 4 * conv(128, 128) + 128
    own = model.optimizers()["discriminator"]
    assert (own.lr, own.betas, own.schedule.kind) == (2e-4, (0.0, 0.9), "linear")
    assert (model.config.loss, model.config.critic_steps, model.config.batch_size) == (
        "hinge",
        5,
        64,
    )
    assert not any(isinstance(m, SpectralConv2d) for m in model.generator.modules())


def test_biggan_cifar10_has_4_30_and_4_21_million_parameters():
    model = make(BigGAN, CIFAR, TEN, preset="cifar10")
    assert count(model.generator) == 4_304_387
    assert count(model.discriminator) == 4_207_361
    own = model.optimizers()
    assert {(o.lr, o.betas, o.eps) for o in own.values()} == {(2e-4, (0.0, 0.999), 1e-6)}
    assert (model.config.critic_steps, model.config.batch_size) == (4, 50)
    assert model.ema() == {"generator": 0.9999}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 9999:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5


def test_biggan_has_the_authors_sizes_at_128_px():
    """The counts that the authors' PyTorch code prints for ImageNet at 128 px."""
    with torch.device("meta"):
        model = make(BigGAN, Grid(channels=3, size=(128, 128)), Classes(count=1000), "paper")
    assert count(model.generator) == 70_433_988
    assert count(model.discriminator) == 87_982_370


def test_sagan_normalises_both_networks_and_attends_in_both():
    with torch.device("meta"):
        model = make(SAGAN, Grid(channels=3, size=(128, 128)), Classes(count=1000), "paper")
    for network, width in ((model.generator, 256), (model.discriminator, 128)):
        (attention,) = [m for m in network.modules() if isinstance(m, SelfAttention)]
        # Keys and queries of c/8, values of c/2, back to c, and gamma.
        assert count(attention) == 2 * width * width // 8 + width * width + 1
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                assert isinstance(module, (SpectralConv2d, SpectralLinear))
    own = model.optimizers()
    assert own["generator"].lr == 1e-4 and own["discriminator"].lr == 4e-4
    assert own["generator"].betas == (0.0, 0.999)


def test_orthogonal_start_and_gains_of_one():
    model = make(BigGAN, CIFAR, TEN, **SMALL, latent_dim=16)
    weight = model.generator.blocks[0].conv1.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-5, rtol=0)
    sngan = make(SNGAN, CIFAR, TEN, conditional=True, initialisation="xavier", **SMALL)
    assert not sngan.generator.blocks[0].norm1.gain.weight.any()  # so the gain is 1
    # Glorot's bound times √2 within blocks.
    bound = math.sqrt(2) * math.sqrt(6 / (16 * 9 + 16 * 9))
    largest = sngan.generator.blocks[0].conv1.weight.abs().max().item()
    assert 0.98 * bound < largest <= bound


# -- the maths of the networks -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [4, 16, 32])
def test_fused_resampling_is_resampling(side, dtype):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, side, side)
    up = layer(F.interpolate(x, scale_factor=2, mode="nearest"))
    down = F.avg_pool2d(layer(x), 2)
    near = {"atol": 1e-5, "rtol": 0} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        torch.testing.assert_close(upsampled_conv(x.to(dtype), layer).float(), up, **near)
        torch.testing.assert_close(downsampled_conv(x.to(dtype), layer).float(), down, **near)


@torch.no_grad()
def test_attention_is_the_naive_formula_and_starts_as_the_identity():
    torch.manual_seed(0)
    layer, x = SelfAttention(16), torch.randn(2, 16, 4, 6)
    assert torch.equal(layer(x), x)
    layer.gamma.fill_(0.7)

    def apply(module, rows):  # (places, c)
        return rows @ module.weight.flatten(1).T

    expected = []
    for image in x:
        places = image.flatten(1).T
        pooled = [
            F.max_pool2d(module(image[None]), 2)[0].flatten(1).T
            for module in (layer.key, layer.value)
        ]
        query = apply(layer.query, places)
        out = torch.stack(
            [
                sum(
                    torch.exp(q @ k) * v / torch.exp(pooled[0] @ q).sum()
                    for k, v in zip(*pooled, strict=True)
                )
                for q in query
            ]
        )
        expected.append(image + 0.7 * apply(layer.output, out).T.view_as(image))
    torch.testing.assert_close(layer(x), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_conditional_batch_norm_is_batch_norm_with_the_gains_of_each_class():
    torch.manual_seed(0)
    layer = ConditionalBatchNorm(4, LabelEmbedding(3, 4), LabelEmbedding(3, 4))
    plain = nn.BatchNorm2d(4)
    x, label = torch.randn(6, 4, 5, 5) * 3 + 1, torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        row = torch.randn(2, 4)
        layer.gain.weight.copy_(row[0].expand(3, 4))
        layer.bias.weight.copy_(row[1].expand(3, 4))
        plain.weight.copy_(1 + row[0])
        plain.bias.copy_(row[1])
    torch.testing.assert_close(layer(x, label), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.eval()(x, label), plain.eval()(x), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        layer.gain.weight[1] += 1
    changed = (layer(x, label) - plain(x)).abs().flatten(1).sum(1) > 1e-3
    assert changed.tolist() == [False, True, False, False, True, False]


def test_discriminator_is_the_papers_formula():
    """Sum-pooled features times a vector, and the class's vector projected on them."""
    model = make(SNGAN, CIFAR, TEN, conditional=True, initialisation="xavier", **SMALL).eval()
    d, x, label = model.discriminator, torch.randn(3, 3, 32, 32), torch.tensor([1, 5, 5])
    h = x
    for i, block in enumerate(d.blocks):
        inner = block.conv2(F.relu(block.conv1(h if i == 0 else F.relu(h))))
        h = F.avg_pool2d(inner, 2) + F.avg_pool2d(block.shortcut(h), 2)
    pooled = F.relu(h).sum((2, 3))
    expected = d.output(pooled)[:, 0] + (d.label(label) * pooled).sum(1)
    torch.testing.assert_close(d(x, label), expected, atol=1e-4, rtol=1e-4)


def test_chunks_of_the_noise_reach_their_blocks_only():
    model = make(BigGAN, CIFAR, TEN, **SMALL, latent_dim=16, shared_dim=4, hierarchical=True)
    g = model.eval().generator
    seen = []
    for block in g.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    z, label = torch.randn(2, 16), torch.tensor([3, 4])
    g(z, label)
    for given, chunk in zip(seen, z.split(4, dim=1)[1:], strict=True):
        torch.testing.assert_close(given, torch.cat((g.shared(label), chunk), dim=1))


# -- as models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SNGAN, SAGAN, BigGAN])
@pytest.mark.parametrize(("size", "side"), [(8, 8), (28, 32), (32, 32), (64, 64), (128, 128)])
def test_they_take_images_of_many_sizes(cls, size, side):
    native = Grid(channels=1, size=(size, size))
    n = int(math.log2(side)) - 1
    model = make(cls, native, generator_widths=(8,) * n, discriminator_widths=(8,) * n)
    assert model.spec == Grid(channels=1, size=(side, side), domain="signed")
    x = model.sample(2)
    assert x.shape == (2, 1, side, side) and x.abs().max() <= 1
    assert model.discriminate(x).shape == (2,)


@pytest.mark.parametrize("cls", [SNGAN, SAGAN, BigGAN])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("penalty", ["none", "r1", "gradient"])
def test_both_phases_reach_their_network(cls, low, penalty):
    options = {"latent_dim": 16, "penalty": penalty, "penalty_weight": 0.1}
    model = make(cls, CIFAR, TEN, conditional=True, **SMALL, **options)
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            nn.init.ones_(module.gamma)  # at zero, nothing before it would get a gradient
    x = torch.rand(4, *model.spec.shape) * 2 - 1
    for phase in model.stages()[0].phases:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss, _ = phase.loss(batch_of(x, torch.tensor([0, 1, 2, 3])), 0)
        assert loss.shape == (4,) and loss.dtype == torch.float32 and loss.isfinite().all()
        loss.mean().backward()
        network = model.get_submodule(phase.name)
        silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # A gradient by the image does not depend on the bias of the logit.
        assert set(silent) <= {"output.bias"}


def test_classes_are_learned_and_mixed():
    model = make(BigGAN, CIFAR, TEN, **SMALL, latent_dim=16, shared_dim=8, hierarchical=True).eval()
    z = torch.randn(1, 16).expand(3, 16)
    weights = torch.tensor(
        [[1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0.5] + [0.5] + [0] * 8, [0, 1] + [0] * 8]
    )
    a, middle, b = model.generator(z, weights)
    torch.testing.assert_close(a, model.generator(z[:1], torch.tensor([0]))[0])
    torch.testing.assert_close(b, model.generator(z[:1], torch.tensor([1]))[0])
    assert (middle - a).abs().max() > 0 and (middle - b).abs().max() > 0
    with pytest.raises(ConfigError, match="conditional"):
        model.discriminate(torch.zeros(1, 3, 32, 32))


def test_without_classes_biggan_is_unconditional():
    model = make(BigGAN, CIFAR, None, **SMALL, latent_dim=16, hierarchical=True)
    assert model.condition is None
    assert model.sample(2).shape == (2, 3, 32, 32)
    assert model.discriminate(torch.zeros(2, 3, 32, 32)).shape == (2,)


def test_truncation_pulls_samples_together():
    model = make(BigGAN, CIFAR, TEN, **SMALL, latent_dim=16)
    same = torch.zeros(16, dtype=torch.int64)
    wide = model.sample(16, condition=same)
    near = model.sample(16, condition=same, options=BigGAN.Sampling(truncation=0.1))
    assert near.std(0).mean() < 0.5 * wide.std(0).mean()


def test_averages_hold_the_batch_statistics():
    from poiesis.training.ema import Average

    model = make(SNGAN, CIFAR, **SMALL, ema=0.5)
    average = Average(model)
    name = "generator.norm.running_mean"
    before = average.shadow[name].clone()
    model.generator.norm.running_mean.add_(2.0)
    average.update(100)
    torch.testing.assert_close(average.shadow[name], before + 1.0)


@pytest.mark.parametrize(
    ("cls", "changes", "spec", "error", "text"),
    [
        (SNGAN, {}, Vector(features=4), SpecError, "images of 1 to 4 channels"),
        (SNGAN, {}, Grid(channels=1, size=(200, 200)), SpecError, "up to 128 px"),
        (SNGAN, {"generator_widths": (16, 8)}, CIFAR, ConfigError, "images of 32 px need 4"),
        (SNGAN, {"generator_widths": ()}, CIFAR, ConfigError, "generator_widths = .. is empty"),
        (SNGAN, {"discriminator_widths": (8,)}, CIFAR, ConfigError, "takes 3 or more"),
        (SNGAN, {"final_size": 12}, CIFAR, ConfigError, "final_size = 12 is no power of two"),
        (SNGAN, {"final_size": 64}, CIFAR, ConfigError, "final_size = 64 is above"),
        (SAGAN, {"attention": (32,)}, CIFAR, ConfigError, "attention = 32 is not a size"),
        (SAGAN, {"attention": (9,)}, CIFAR, ConfigError, "attention = 9 is no power of two"),
        (SNGAN, {"batch_size": 1}, CIFAR, ConfigError, "batch_size = 1"),
        (SNGAN, {"conditional": True}, CIFAR, ConfigError, "needs data with classes"),
        (BigGAN, {"latent_dim": 63}, CIFAR, ConfigError, "4 equal chunks .* take 60"),
        (BigGAN, {"shared_dim": 0}, CIFAR, ConfigError, "needs shared_dim"),
    ],
)
def test_wrong_choices_say_so(cls, changes, spec, error, text):
    with pytest.raises(error, match=text):
        make(cls, spec, **changes)


def test_presets_of_a_paper_refuse_other_sizes():
    with pytest.raises(ConfigError, match="try cifar10"):
        BigGAN.preset("paper", CIFAR)
    with pytest.raises(ConfigError, match="images of 64 px need 5"):
        make(SNGAN, Grid(channels=3, size=(64, 64)), preset="paper")
