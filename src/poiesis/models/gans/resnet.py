"""Residual generators and discriminators, as of SNGAN, SAGAN and BigGAN, and their shared options.

Blocks are those of Miyato et al., arXiv:1802.05957 (appendix B.4). The maths is kept, its order is
not: what comes out equal is done at the smaller size. A 1x1 convolution before an upsampling is the
one after it, and a 3x3 convolution of an upsampled map is a transposed one of the map itself, with
less than half of the products. Shape letters: b batch, c channels, h height, w width, z latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.gans.adversarial import Adversarial
from poiesis.models.gans.padding import padded_size, padded_view
from poiesis.nn.batch_norm import ConditionalBatchNorm
from poiesis.nn.labels import LabelEmbedding
from poiesis.nn.spectral_norm import (
    SpectralConv2d,
    SpectralLabels,
    SpectralLinear,
    SpectralNorm,
)
from poiesis.spec import Condition, Grid, Spec

__all__ = [
    "Initialisation",
    "ResidualDiscriminator",
    "ResidualGAN",
    "ResidualGenerator",
    "SelfAttention",
    "fast_widths",
]

Initialisation = Literal["xavier", "orthogonal", "normal"]
_FUSED = 16
"""Side of the smaller map from which on a fused resampling is faster than two steps in bf16."""


class ResidualGAN(Adversarial):
    """Base of the GANs with residual networks: their options, view and networks."""

    logit_bias: ClassVar[bool] = True
    """Whether the discriminator's last layer has a bias; SNGAN's has none in its authors' code."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of residual GANs."""

        latent_dim: int = 128
        """Dimensions of the normal noise that the generator turns into an image."""
        loss: str = "hinge"
        """minimax, non-saturating, least-squares, wasserstein, hinge or relativistic; or the import
        path package.module:NAME of your own AdversarialLoss."""
        generator_widths: tuple[int, ...] = (256, 256, 256, 256)
        """Channels of the generator's maps of 4 px, 8 px, … up to the size of the image."""
        discriminator_widths: tuple[int, ...] = (128, 128, 128, 128)
        """Channels of the discriminator's blocks; the first ones halve the maps."""
        final_size: int = 8
        """Side in px to which the discriminator's blocks halve the image."""
        attention: tuple[int, ...] = ()
        """Sides in px of the maps that attend to themselves, in both networks."""
        spectral_norm: Literal["none", "discriminator", "both"] = "discriminator"
        """Whose weights are divided by their largest singular value."""
        initialisation: Initialisation = "xavier"
        """Weights at the start: xavier, orthogonal or normal (standard deviation 0.02)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("generator_widths", "discriminator_widths"):
                if not getattr(self, name):
                    raise ConfigError(f"{name} = () is empty; give one per size, e.g. 128,64")
                for width in getattr(self, name):
                    check(name, width, low=8, high=8192)
            for name, sides in (("final_size", (self.final_size,)), ("attention", self.attention)):
                for side in sides:
                    check(name, side, low=4, high=128)
                    if side & (side - 1):
                        raise ConfigError(f"{name} = {side} is no power of two, such as 16 or 32")
            # Batch statistics need two samples.
            check("batch_size", self.batch_size, low=2)

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return square images in [-1, 1], padded to the next power of two of at least 8."""
        size = padded_size(spec, cls.__name__, most=128)
        sides = [4 * 2**i for i in range(len(config.generator_widths))]
        if sides[-1] != size:
            raise ConfigError(
                f"generator_widths = {config.generator_widths} has {len(sides)} values; images of "
                f"{size} px need {int(math.log2(size)) - 1}"
            )
        halved = int(math.log2(size / config.final_size))
        if halved < 0:
            raise ConfigError(
                f"final_size = {config.final_size} is above the {size} px of the images"
            )
        if len(config.discriminator_widths) < halved:
            raise ConfigError(
                f"discriminator_widths = {config.discriminator_widths} has too few values; from "
                f"{size} to {config.final_size} px takes {halved} or more"
            )
        for side in config.attention:
            if not max(8, config.final_size) <= side < size:
                raise ConfigError(
                    f"attention = {side} is not a size of both networks' maps: "
                    f"{max(8, config.final_size)} to {size // 2} px"
                )
        return padded_view(spec, size)

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        assert isinstance(spec, Grid)
        classes = self.condition.count if self.condition else 0
        self.generator = self.build_generator(spec, classes)
        self.discriminator = ResidualDiscriminator(
            config.discriminator_widths,
            spec.channels,
            halved=int(math.log2(spec.size[0] / config.final_size)),
            classes=classes,
            classify=bool(config.auxiliary_weight),
            spectral=config.spectral_norm != "none",
            attention=[spec.size[0] // side for side in config.attention],
            bias=self.logit_bias,
        )
        for network in (self.generator, self.discriminator):
            initialise(network, config.initialisation)

    def build_generator(self, spec: Grid, classes: int) -> nn.Module:
        """Return the generator for images of this spec and 0 or more classes."""
        c = self.config
        return ResidualGenerator(
            c.generator_widths,
            c.latent_dim,
            spec.channels,
            classes=classes,
            spectral=c.spectral_norm == "both",
            attention=c.attention,
        )


def fast_widths(spec: Spec, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return widths of a generator and a discriminator down to 4 px that a CPU trains in minutes.

    name: of the model, for the SpecError that unsuitable data raises.
    """
    size = padded_size(spec, name, most=128)
    count = int(math.log2(size)) - 1
    # Narrow where positions are many: twice as wide there, a step of 32 px takes twice as long.
    generator = tuple(min(128, 16 * 2**i) for i in reversed(range(count)))
    return generator, tuple(min(128, 32 * 2**i) for i in range(count - 1))


# -- networks ------------------------------------------------------------------------------------


class ResidualGenerator(nn.Module):
    """z (b, z) → image (b, channels, s, s) in [-1, 1].

    widths: channels at 4, 8, … px. shared: width of one embedding of the class, of which every
    normalisation makes its gains; 0: each has an embedding of its own. hierarchical: z is cut into
    equal chunks, the first for the first layer and one for each block's gains.
    """

    def __init__(
        self,
        widths: Sequence[int],
        latent: int,
        channels: int,
        *,
        classes: int = 0,
        spectral: bool = False,
        attention: Sequence[int] = (),
        shared: int = 0,
        hierarchical: bool = False,
    ) -> None:
        super().__init__()
        linear = SpectralLinear if spectral else nn.Linear
        conv = SpectralConv2d if spectral else nn.Conv2d
        chunks = len(widths) if hierarchical else 1
        self.chunk = latent // chunks
        self.hierarchical = hierarchical
        self.shared = LabelEmbedding(classes, shared) if classes and shared else None
        wide = (shared if classes else 0) + (self.chunk if hierarchical else 0)

        def norm(width: int) -> nn.Module:
            if wide:
                gains = [linear(wide, width, bias=False) for _ in range(2)]
            elif classes:
                gains = [LabelEmbedding(classes, width) for _ in range(2)]
            else:
                return _BatchNorm(width)
            return ConditionalBatchNorm(width, *gains)

        self.input = linear(self.chunk, 16 * widths[0])
        self.blocks = nn.ModuleList(
            _UpBlock(a, b, norm, conv, attend=8 * 2**i in attention)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.output = conv(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Return images; label: int64 (b,) or float (b, k), None without classes."""
        parts = z.split(self.chunk, dim=1)
        shared = None if self.shared is None else self.shared(label)
        h = self.input(parts[0]).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks):
            given = [] if shared is None else [shared]
            given += [parts[i + 1]] if self.hierarchical else []
            h = block(h, torch.cat(given, dim=1) if given else label)
        return torch.tanh(self.output(F.relu(self.norm(h))))


class _BatchNorm(nn.BatchNorm2d):
    """The unconditional one, called as the conditional one is."""

    def forward(self, input: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(input)


class _UpBlock(nn.Module):
    """Maps (b, a, h, w) → (b, b, 2h, 2w)."""

    def __init__(
        self,
        a: int,
        b: int,
        norm: Callable[[int], nn.Module],
        conv: type[nn.Conv2d],
        *,
        attend: bool,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(a), norm(b)
        self.conv1 = conv(a, b, 3, padding=1)
        self.conv2 = conv(b, b, 3, padding=1)
        self.shortcut = conv(a, b, 1)
        self.attention = SelfAttention(b, conv) if attend else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = upsampled_conv(F.relu(self.norm1(x, condition)), self.conv1)
        h = self.conv2(F.relu(self.norm2(h, condition)))
        return self.attention(h + F.interpolate(self.shortcut(x), scale_factor=2))


class ResidualDiscriminator(nn.Module):
    """image (b, channels, s, s) → logits (b,).

    widths: channels of the blocks, of which the first `halved` halve the map. attention: factors
    from the image's side to that of the maps that attend to themselves. pool: how the last maps
    become one vector; sums are SNGAN's, means are WGAN-GP's. classify: classes are told by a second
    head instead of being projected on (arXiv:1802.05637).
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        *,
        halved: int,
        classes: int = 0,
        classify: bool = False,
        spectral: bool = True,
        attention: Sequence[int] = (),
        pool: Literal["sum", "mean"] = "sum",
        bias: bool = True,
    ) -> None:
        super().__init__()
        conv = SpectralConv2d if spectral else nn.Conv2d
        linear = SpectralLinear if spectral else nn.Linear
        embedding = SpectralLabels if spectral else LabelEmbedding
        self.blocks = nn.ModuleList(
            _DownBlock(
                a,
                b,
                conv,
                first=i == 0,
                halve=i < halved,
                attend=i < halved and 2 ** (i + 1) in attention,
            )
            for i, (a, b) in enumerate(itertools.pairwise((channels, *widths)))
        )
        self.pool = pool
        self.output = linear(widths[-1], 1, bias=bias)
        self.label = embedding(classes, widths[-1]) if classes and not classify else None
        self.classifier = linear(widths[-1], classes) if classify else None

    def forward(
        self, x: Tensor, label: Tensor | None, classify: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits; with `classify`, logits of the classes (b, k) too."""
        for block in self.blocks:
            x = block(x)
        x = F.relu(x)
        with torch.autocast(x.device.type, enabled=False):
            h = x.sum((2, 3), dtype=torch.float32)
            if self.pool == "mean":
                h = h / x[0, 0].numel()
            logits = self.output(h).flatten()
            if self.label is not None:
                logits = logits + (self.label(label) * h).sum(1)
            if classify:
                assert self.classifier is not None
                return logits, self.classifier(h)
        return logits


class _DownBlock(nn.Module):
    """Maps (b, a, h, w) → (b, b, h, w), halved if so asked; the first one sees the image itself."""

    def __init__(
        self, a: int, b: int, conv: type[nn.Conv2d], *, first: bool, halve: bool, attend: bool
    ) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = conv(a, b, 3, padding=1)
        self.conv2 = conv(b, b, 3, padding=1)
        self.shortcut = conv(a, b, 1) if halve or a != b else nn.Identity()
        self.attention = SelfAttention(b, conv) if attend else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Not in place: the shortcut needs x as it is.
        h = F.relu(self.conv1(x if self.first else F.relu(x)))
        h = downsampled_conv(h, self.conv2) if self.halve else self.conv2(h)
        return self.attention(h + self.shortcut(F.avg_pool2d(x, 2) if self.halve else x))


class SelfAttention(nn.Module):
    """Attention of each place to places of a pooled map, arXiv:1805.08318, section 3.

    Maps (b, c, h, w) → x + gamma · attention(x), with gamma 0 at the start. Keys and queries have
    c / 8 channels, values c / 2; keys and values are pooled 2x2.
    """

    def __init__(self, channels: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.query = conv(channels, channels // 8, 1, bias=False)
        self.key = conv(channels, channels // 8, 1, bias=False)
        self.value = conv(channels, channels // 2, 1, bias=False)
        self.output = conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        query = self.query(x).flatten(2).transpose(1, 2)  # b hw c/8
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # b c/8 hw/4
        value = F.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)  # b hw/4 c/2
        weights = torch.softmax(query @ key, dim=-1).to(value.dtype)  # b hw hw/4
        found = (weights @ value).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gamma.to(x.dtype) * self.output(found)


# -- convolutions with a resampling --------------------------------------------------------------


def upsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the 3x3 convolution of the map (b, c, h, w) upsampled to twice its size.

    Nearest-neighbour upsampling repeats what three rows of the kernel see in two rows of x, so that
    the kernel's rows add up to one of 4x4 for a transposed convolution.
    """
    weight = _weight(conv)
    if x.dtype == torch.bfloat16 and x.size(2) < _FUSED:
        return F.conv2d(F.interpolate(x, scale_factor=2), weight, conv.bias, padding=1)
    kernel = _spread(weight.flip(2, 3)).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def downsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the means of 2x2 places of the 3x3 convolution of the map (b, c, h, w)."""
    weight = _weight(conv)
    if x.dtype == torch.bfloat16 and x.size(2) < 2 * _FUSED:
        return F.avg_pool2d(F.conv2d(x, weight, conv.bias, padding=1), 2)
    return F.conv2d(x, _spread(weight) / 4, conv.bias, stride=2, padding=1)


def _weight(conv: nn.Conv2d) -> Tensor:
    """Return the weight that a convolution computes with."""
    return conv.normalised() if isinstance(conv, SpectralConv2d) else conv.weight.float()


def _spread(kernel: Tensor) -> Tensor:
    """Return the sum (o, i, 4, 4) of a 3x3 kernel at the four places of a 4x4 one."""
    rows = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return F.pad(rows, (0, 0, 0, 1)) + F.pad(rows, (0, 0, 1, 0))


# -- initial weights -----------------------------------------------------------------------------


def initialise(network: nn.Module, kind: Initialisation) -> None:
    """Draw all weights anew; biases are 0, gains 1.

    xavier: uniform (Glorot & Bengio, 2010), with gain √2 for the 3x3 convolutions of blocks, and
    conditional gains of 1 for all classes, as the code of arXiv:1802.05637 has it.
    """
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            continue
        if kind == "orthogonal":
            nn.init.orthogonal_(module.weight)
        elif kind == "normal":
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.Embedding) and not isinstance(module, SpectralNorm):
            nn.init.zeros_(module.weight)
        else:
            inner = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
            gain = math.sqrt(2) if inner and name != "output" else 1.0
            nn.init.xavier_uniform_(module.weight, gain)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        if isinstance(module, SpectralNorm):
            module.start()
