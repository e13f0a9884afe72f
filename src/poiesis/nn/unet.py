"""The U-Net of denoising diffusion (arXiv 2006.11239, appendix B), for any image size.

Residual blocks of group normalisation, SiLU and 3x3 convolutions over several resolutions, with
self-attention at chosen ones and in the middle; the noise level enters every block. Modules are
named after the `UNet2DModel` layout of published weights, so that a file of those maps one to one.
`wave_unet` makes it one for audio, `video_unet` one for video. Shapes: b batch, c channels,
h height, w width, e embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.nn.attention import attend
from poiesis.nn.conditions import told
from poiesis.nn.dropout import Dropout
from poiesis.nn.group_norm import GroupNorm
from poiesis.nn.recompute import recomputed
from poiesis.nn.text_encoder import Text, TextEncoder

__all__ = ["UNet", "UNetOptions", "sinusoidal_embedding"]

Kernel = tuple[int, int]
"""Height and width of the convolutions; a side of 1 is not halved from level to level."""


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Finer points in which published U-Nets differ; the defaults are DDPM's."""

    head_width: int | None = None
    """Channels of an attention head; none is one head of all channels."""
    scale_shift: bool = False
    """The noise level scales the features too, not only shifts them (arXiv 2102.09672)."""
    padding: Literal["end", "both"] = "end"
    """Sides of an image that are padded before it is halved: right and bottom, or all four."""
    norm_eps: float = 1e-6
    """What normalisations add to the variance."""
    middle_groups: int | None = None
    """Groups of the normalisation before the middle's attention; none is as many as elsewhere, 0
    leaves it out."""
    cosines_first: bool = False
    """Order of the noise level's embedding: cosines, then sines."""
    frequency_shift: Literal[0, 1] = 1
    """1: its frequencies reach 1e-4; 0: they end one step before."""

    def __post_init__(self) -> None:
        check("unet.head_width", self.head_width, low=1)
        check("unet.norm_eps", self.norm_eps, low=0, high=1)
        check("unet.middle_groups", self.middle_groups, low=0)


def sinusoidal_embedding(
    t: Tensor, dim: int, *, cosines_first: bool = False, frequency_shift: int = 1
) -> Tensor:
    """Embed noise levels (b,) as [sin, cos] of geometric frequencies 1…1e-4, (b, dim), float32."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    steps = steps / max(half - frequency_shift, 1)
    phase_be = t.float()[:, None] * torch.exp(-math.log(10_000) * steps)
    waves = [phase_be.sin(), phase_be.cos()]
    if cosines_first:
        waves.reverse()
    return F.pad(torch.cat(waves, dim=1), (0, dim - 2 * half))


class ResBlock(nn.Module):
    """norm, SiLU, conv, + noise level, norm, SiLU, dropout, conv, + input.

    With scale_shift the noise level comes after the second norm: · (1 + scale) + shift.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        groups: int,
        dropout: float,
        options: UNetOptions,
        kernel: Kernel = (3, 3),
    ) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.norm1 = GroupNorm(groups, c_in, eps=options.norm_eps)
        self.conv1 = _conv(c_in, c_out, kernel)
        self.time_emb_proj = nn.Linear(embedding, 2 * c_out if options.scale_shift else c_out)
        self.norm2 = GroupNorm(groups, c_out, eps=options.norm_eps)
        self.dropout = Dropout(dropout)
        self.conv2 = _conv(c_out, c_out, kernel)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x_bchw: Tensor, emb_be: Tensor) -> Tensor:
        """Return (b, c_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x_bchw)))
        level = self.time_emb_proj(F.silu(emb_be))[:, :, None, None]
        if self.scale_shift:
            scale, shift = level.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + level)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.conv_shortcut(x_bchw) + h


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection.

    groups: of the normalisation, 0 for none. heads: a divisor of `channels`. text_width: of the
    vectors of a caption, to which the pixels then attend too; 0 is none.
    """

    def __init__(
        self, channels: int, groups: int, heads: int, eps: float, text_width: int = 0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = GroupNorm(groups, channels, eps=eps) if groups else nn.Identity()
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.text = CrossAttention(channels, groups, eps, text_width) if text_width else None

    def forward(self, x_bchw: Tensor, text: Text | None = None) -> Tensor:
        """Return the same shape."""
        b, c, h, w = x_bchw.shape
        # In channels-last memory these reshapes are views.
        tokens = self.group_norm(x_bchw).flatten(2).transpose(1, 2)
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = attend(q, k, v).transpose(1, 2).flatten(2)
        out = self.to_out(out).transpose(1, 2).reshape(b, c, h, w)
        x_bchw = x_bchw + out
        return x_bchw if self.text is None else self.text(x_bchw, text)


class CrossAttention(nn.Module):
    """Attention of the pixels to the tokens of a caption (arXiv 2112.10752), + input."""

    def __init__(self, channels: int, groups: int, eps: float, text_width: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, 4)
        self.group_norm = GroupNorm(groups, channels, eps=eps) if groups else nn.Identity()
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(text_width, channels)
        self.to_v = nn.Linear(text_width, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x_bchw: Tensor, text: Text) -> Tensor:
        """Return the same shape."""
        pixels = self.group_norm(x_bchw).flatten(2).transpose(1, 2)
        parts = self.to_q(pixels), self.to_k(text.tokens), self.to_v(text.tokens)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        out = attend(q, k, v, text.mask[:, None, None])
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return x_bchw + out.transpose(1, 2).reshape(x_bchw.shape)


class Downsample(nn.Module):
    """Halve the resolution by a convolution of stride 2, padded at the right and bottom or both."""

    def __init__(
        self, channels: int, padding: Literal["end", "both"], kernel: Kernel = (3, 3)
    ) -> None:
        super().__init__()
        high, wide = (size // 2 for size in kernel)
        self.end = (0, wide, 0, high) if padding == "end" else None
        self.conv = nn.Conv2d(
            channels,
            channels,
            kernel,
            stride=(1 + high, 1 + wide),
            padding=0 if self.end else (high, wide),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (b, c, h/2, w/2)."""
        x_bchw = F.pad(x_bchw, self.end) if self.end else x_bchw
        if x_bchw.shape[3] > 3 or x_bchw.device.type != "cpu":
            return self.conv(x_bchw)
        # Columns that come out one wide, in bfloat16, oneDNN fills with whatever was in memory.
        conv = self.conv
        with torch.autocast("cpu", enabled=False):
            bias = None if conv.bias is None else conv.bias.float()
            x = F.conv2d(x_bchw.float(), conv.weight.float(), bias, conv.stride, conv.padding)
        return x.to(x_bchw.dtype)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then a convolution."""

    def __init__(self, channels: int, kernel: Kernel = (3, 3)) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, kernel)
        self.factors = tuple(1.0 + size // 2 for size in kernel)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (b, c, 2h, 2w)."""
        return self.conv(F.interpolate(x_bchw, scale_factor=self.factors, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each with attention or not, and a resampler."""

    def __init__(
        self,
        resnets: list[ResBlock],
        attentions: list[Attention],
        resample: Downsample | Upsample | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample
        self.temporal = nn.ModuleList()
        """Of a video: what follows each block and looks at other frames."""
        self.recompute = False

    def block(self, i: int, x_bchw: Tensor, emb_be: Tensor, text: Text | None = None) -> Tensor:
        """Run residual block i and the attention after it, if there is one."""
        if self.recompute and self.training:
            return recomputed(self._block, i, x_bchw, emb_be, text)
        return self._block(i, x_bchw, emb_be, text)

    def _block(self, i: int, x_bchw: Tensor, emb_be: Tensor, text: Text | None) -> Tensor:
        x_bchw = self.resnets[i](x_bchw, emb_be)
        x_bchw = self.attentions[i](x_bchw, text) if i < len(self.attentions) else x_bchw
        return self.temporal[i](x_bchw) if i < len(self.temporal) else x_bchw


class DownLevel(Level):
    """A resolution on the way down; it remembers what each module made."""

    def forward(
        self, x_bchw: Tensor, emb_be: Tensor, skips: list[Tensor], text: Text | None = None
    ) -> Tensor:
        """Return the (halved) features and append all intermediate ones to `skips`."""
        for i in range(len(self.resnets)):
            x_bchw = self.block(i, x_bchw, emb_be, text)
            skips.append(x_bchw)
        if self.resample is not None:
            x_bchw = self.resample(x_bchw)
            skips.append(x_bchw)
        return x_bchw


class MiddleLevel(Level):
    """The coarsest resolution between the ways down and up."""

    def forward(self, x_bchw: Tensor, emb_be: Tensor, text: Text | None = None) -> Tensor:
        """Return the same shape."""
        for i in range(len(self.resnets)):
            x_bchw = self.block(i, x_bchw, emb_be, text)
        return x_bchw


class UpLevel(Level):
    """A resolution on the way up; each block also sees what the way down remembered."""

    def forward(
        self, x_bchw: Tensor, emb_be: Tensor, skips: list[Tensor], text: Text | None = None
    ) -> Tensor:
        """Return the (doubled) features, taking one tensor off `skips` per block."""
        for i in range(len(self.resnets)):
            x_bchw = self.block(i, torch.cat([x_bchw, skips.pop()], dim=1), emb_be, text)
        return x_bchw if self.resample is None else self.resample(x_bchw)


class UNet(nn.Module):
    """The network: (x_t, noise level, class) → an image of the same size.

    channels: width of the first resolution, a multiple of `groups`. multipliers: width of each
    resolution in units of `channels`, from fine to coarse, fractions allowed; height and width must
    be divisible by 2^(len − 1). blocks: residual blocks per resolution. attention: whether each
    resolution has attention; the middle always does. classes: 0, or the number of classes; class
    number `classes` then means "no class". captions: tokens and length of captions, or None;
    attention is then paid to their tokens too. text_width, text_layers: sizes of the encoder of
    these. in_channels, out_channels: where they are not image_channels. kernel: of the
    convolutions. recompute: keep only what goes between the blocks for the way back and compute
    the rest again. Raises ConfigError for widths that groups or heads don't divide.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        channels: int,
        multipliers: Sequence[float],
        blocks: int,
        attention: Sequence[bool],
        groups: int = 32,
        dropout: float = 0.0,
        classes: int = 0,
        options: UNetOptions | None = None,
        captions: tuple[int, int] | None = None,
        text_width: int = 64,
        text_layers: int = 2,
        kernel: Kernel = (3, 3),
        in_channels: int | None = None,
        out_channels: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        options = options or UNetOptions()
        embedding = 4 * channels
        widths = [round(channels * m) for m in multipliers]
        self.channels = channels
        self.options = options
        middle_groups = groups if options.middle_groups is None else options.middle_groups
        for width in widths:
            _check_divides("groups", groups, width)
        _check_divides("unet.middle_groups", middle_groups or 1, widths[-1])

        def res(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, embedding, groups, dropout, options, kernel)

        def attend(width: int, groups: int = groups) -> Attention:
            each = options.head_width or width
            _check_divides("unet.head_width", each, width)
            read = text_width if captions else 0
            return Attention(width, groups, width // each, options.norm_eps, read)

        self.time_embedding = nn.Sequential(
            nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.class_embedding = nn.Embedding(classes + 1, embedding) if classes else None
        self.text_encoder = None
        if captions is not None:
            vocabulary, length = captions
            self.text_encoder = TextEncoder(
                vocabulary=vocabulary,
                length=length,
                width=text_width,
                layers=text_layers,
                out=embedding,
            )
        self.conv_in = _conv(in_channels or image_channels, channels, kernel)

        current = channels
        skips = [channels]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resnets = [res(current if j == 0 else width, width) for j in range(blocks)]
            attentions = [attend(width) for _ in range(blocks) if attention[i]]
            last = i == len(widths) - 1
            down = None if last else Downsample(width, options.padding, kernel)
            self.down_blocks.append(DownLevel(resnets, attentions, down))
            skips += [width] * (blocks if last else blocks + 1)
            current = width

        self.mid_block = MiddleLevel(
            [res(current, current), res(current, current)], [attend(current, middle_groups)]
        )

        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(blocks + 1):
                resnets.append(res(current + skips.pop(), width))
                current = width
            attentions = [attend(width) for _ in range(blocks + 1) if attention[i]]
            up = Upsample(width, kernel) if i else None
            self.up_blocks.append(UpLevel(resnets, attentions, up))

        self.conv_norm_out = GroupNorm(groups, current, eps=options.norm_eps)
        self.conv_out = _conv(current, out_channels or image_channels, kernel)
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            level.recompute = recompute  # type: ignore[assignment]
        self._init_weights()

    def _init_weights(self) -> None:
        """Variance 1/mean fan, biases 0; the last layer of every residual branch starts at 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, (Attention, CrossAttention)):
                nn.init.zeros_(module.to_out.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_bchw: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, out_channels, h, w) of (b, in_channels, h, w). t: levels (b,).

        condition: int64, classes (b,) or captions (b, length); None is without.
        """
        return self.denoise(x_bchw, *self.embed(t, condition))

    def embed(self, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Text | None]:
        """Return levels and conditions as vectors (b, e), and captions for attention."""
        waves_be = sinusoidal_embedding(
            t,
            self.channels,
            cosines_first=self.options.cosines_first,
            frequency_shift=self.options.frequency_shift,
        )
        emb_be = self.time_embedding(waves_be)
        return told(emb_be, condition, self.class_embedding, self.text_encoder)

    def denoise(self, x_bchw: Tensor, emb_be: Tensor, text: Text | None) -> Tensor:
        """Return (b, image_channels, h, w), given what `embed` returned."""
        x, skips = self.way_down(x_bchw, emb_be, text)
        for level in self.up_blocks:
            x = level(x, emb_be, skips, text)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def way_down(
        self, x_bchw: Tensor, emb_be: Tensor, text: Text | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what the middle makes of an image, and all features on the way to it."""
        x = self.conv_in(x_bchw)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, emb_be, skips, text)
        return self.mid_block(x, emb_be, text), skips


def _conv(c_in: int, c_out: int, kernel: Kernel) -> nn.Conv2d:
    """Return a convolution that keeps the size."""
    return nn.Conv2d(c_in, c_out, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


def _check_divides(name: str, value: int, width: int) -> None:
    """Raise ConfigError unless an option divides the width of a resolution."""
    if width % value:
        raise ConfigError(f"{name} = {value} does not divide the {width} channels of a resolution")
