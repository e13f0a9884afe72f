"""The denoising U-Net for video: that of images on each frame, and layers over time between.

Space and time are factorised (arXiv 2204.03458): convolutions and attention see one frame, then a
temporal layer sees one place of all frames. Each of those begins as the identity, so that the
network begins as the image network on each frame. Shapes: b batch, c channels, t frames, h height,
w width, p places, e embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.nn.attention import attend
from poiesis.nn.dropout import Dropout
from poiesis.nn.group_norm import GroupNorm
from poiesis.nn.text_encoder import Text
from poiesis.nn.unet import Level, UNet

__all__ = ["TemporalLayer", "VideoUNet"]

_HEADS = 4
"""Heads of attention over time, or fewer where they don't divide the channels."""


class TemporalLayer(nn.Module):
    """A convolution over three frames, then attention over all; both + input.

    frames: t of the videos. groups: of the normalisations. attend: whether there is attention.
    """

    def __init__(
        self, channels: int, frames: int, groups: int, *, attend: bool, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.frames = frames
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.attention = TemporalAttention(channels, frames, groups, eps) if attend else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (b·t, c, h, w), the same shape."""
        # In channels-last memory this is a view, and the kernel one for images.
        rows = F.silu(self.norm(x)).unflatten(0, (-1, self.frames))
        out_bctp = self.conv(rows.transpose(1, 2).flatten(3))
        x = x + out_bctp.transpose(1, 2).reshape(x.shape)
        return x if self.attention is None else self.attention(x)


class TemporalAttention(nn.Module):
    """Self-attention of each place over the frames, which know their position, + input."""

    def __init__(self, channels: int, frames: int, groups: int, eps: float) -> None:
        super().__init__()
        self.frames = frames
        self.heads = math.gcd(channels, _HEADS)
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.positions = nn.Parameter(torch.empty(frames, 1, channels))
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.xavier_uniform_(self.to_qkv.weight)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b·t, c, h, w), the same shape."""
        tokens_btpc = self.norm(x).flatten(2).transpose(1, 2).unflatten(0, (-1, self.frames))
        parts = self.to_qkv(tokens_btpc + self.positions).unflatten(3, (3, self.heads, -1))
        q, k, v = parts.permute(3, 0, 2, 4, 1, 5)  # each b p heads t width
        out = attend(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)
        return x + self.to_out(out).flatten(0, 1).transpose(1, 2).reshape(x.shape)


class _FrameDropout(Dropout):
    """Dropout of frames in the batch axis, drawn by video."""

    def __init__(self, p: float, frames: int) -> None:
        super().__init__(p)
        self.frames = frames

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(0, (-1, self.frames))).flatten(0, 1)


class VideoUNet(UNet):
    """The network: (x_t, noise level, class) → a video of the same shape, (b, c, t, h, w).

    frames: t. sizes: the options of `UNet`; where a resolution has attention, there is attention
    over time, too. Parameters that both have bear the names of the image network.
    """

    def __init__(
        self, *, frames: int, groups: int = 32, dropout: float = 0.0, **sizes: Any
    ) -> None:
        super().__init__(groups=groups, dropout=dropout, **sizes)
        self.frames = frames
        levels: list[Any] = [*self.down_blocks, self.mid_block, *self.up_blocks]
        for level in levels:
            assert isinstance(level, Level)
            for block in level.resnets:
                block.dropout = _FrameDropout(dropout, frames)
                width = block.conv2.out_channels  # type: ignore[union-attr]
                layer = TemporalLayer(
                    width,  # type: ignore[arg-type]
                    frames,
                    groups,
                    attend=len(level.attentions) > 0,
                    eps=self.options.norm_eps,
                )
                level.temporal.append(layer)

    def forward(self, x_bcthw: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, c, t, h, w). t, condition: see `UNet.forward`."""
        emb_be, text = self.embed(t, condition)
        emb_be = emb_be.repeat_interleave(self.frames, 0)
        if text is not None:
            text = Text(*(part.repeat_interleave(self.frames, 0) for part in text))
        out = self.denoise(x_bcthw.transpose(1, 2).flatten(0, 1), emb_be, text)
        return out.unflatten(0, (-1, self.frames)).transpose(1, 2)
