"""A classifier of noised data: a U-Net's way down, then attention (arXiv 2105.05233, section 4).

Shapes: b batch, c channels, n pixels of the coarsest resolution (of video, those of all frames).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.nn.attention import attend
from poiesis.nn.folded import Folded, fold
from poiesis.nn.group_norm import GroupNorm
from poiesis.nn.unet import UNet

__all__ = ["AttentionPool", "NoisedClassifier"]

_HEADS = 4


class AttentionPool(nn.Module):
    """The mean of all tokens asks them for what matters: (b, n, c) → (b, outputs)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, _HEADS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels, bias=False)  # It would add the same to all.
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, outputs)

    def forward(self, tokens_bnc: Tensor) -> Tensor:
        """Return (b, outputs)."""
        mean = tokens_bnc.mean(1, keepdim=True)
        parts = self.to_q(mean), self.to_k(tokens_bnc), self.to_v(tokens_bnc)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(1))


class NoisedClassifier(nn.Module):
    """(x_t, noise level) → logits of the classes.

    network: a U-Net for images, audio or video, without a condition, or one for folded data; its
    way up is dropped. groups: of the normalisation, a divisor of the coarsest resolution's width.
    """

    def __init__(self, network: nn.Module, classes: int, groups: int) -> None:
        super().__init__()
        self.size, self.axes = 1, 0
        if isinstance(network, Folded):
            self.size, self.axes = network.size, network.axes
            network = network.network  # type: ignore[assignment]
        assert isinstance(network, UNet)
        del network.up_blocks, network.conv_norm_out, network.conv_out
        self.encoder = network
        width: int = network.mid_block.resnets[-1].conv2.out_channels  # type: ignore[union-attr]
        self.norm = GroupNorm(groups, width)
        self.pool = AttentionPool(width, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits (b, classes) of data (b, c, …), noised to levels t (b,)."""
        x = fold(x, self.size, self.axes)
        level_be, _ = self.encoder.embed(t, None)
        b = len(x)
        if x.ndim == 3:
            x = x[:, :, None]  # audio is an image that is one pixel high
        elif x.ndim == 5:
            level_be = level_be.repeat_interleave(x.shape[2], 0)
            x = x.transpose(1, 2).flatten(0, 1)
        h = F.silu(self.norm(self.encoder.way_down(x, level_be, None)[0]))
        return self.pool(h.flatten(2).transpose(1, 2).reshape(b, -1, h.shape[1]))
