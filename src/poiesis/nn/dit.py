"""The diffusion transformer (arXiv 2212.09748): a transformer over patches instead of a U-Net.

The noise level and the class scale, shift and gate every block (adaLN-Zero); positions are fixed
waves. It sees patches as channels of one place, which `Folded` makes of pixels, in one dimension,
two or three. Shape letters: b batch, c channels, t places, w width, h heads, e width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.nn.attention import attend
from poiesis.nn.conditions import told
from poiesis.nn.dropout import Dropout
from poiesis.nn.recompute import recomputed
from poiesis.nn.text_encoder import TextEncoder
from poiesis.nn.unet import sinusoidal_embedding

__all__ = ["PAPER", "DiT", "DiTOptions", "places"]

_WAVES = 256
"""Values that a noise level is first embedded in (the official code's)."""
_EPS = 1e-6
"""What normalisations add to the variance (the official code's)."""


@dataclass(frozen=True, kw_only=True)
class DiTOptions:
    """Size of a diffusion transformer; the defaults suit small images."""

    patch: int = 2
    """Pixels of a patch's sides (audio: samples); half as many are four times the work."""
    width: int = 128
    """Width of every block, a multiple of `heads`."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Heads of the attention."""

    def __post_init__(self) -> None:
        check("dit.patch", self.patch, low=1, high=4096)
        check("dit.width", self.width, low=1, high=65_536)
        check("dit.depth", self.depth, low=1, high=1000)
        check("dit.heads", self.heads, low=1)
        if self.width % self.heads:
            raise ConfigError(f"dit.heads = {self.heads} does not divide dit.width = {self.width}")


PAPER = {
    "s": DiTOptions(width=384, depth=12, heads=6),
    "b": DiTOptions(width=768, depth=12, heads=12),
    "l": DiTOptions(width=1024, depth=24, heads=16),
    "xl": DiTOptions(width=1152, depth=28, heads=16),
}
"""The paper's sizes (table 1), with patches of two pixels."""


def places(size: Sequence[int], width: int) -> Tensor:
    """Return the embeddings (t, width) of all places of a grid, row by row.

    Each axis, the last one first, has its share of the width: sines, then cosines of its coordinate
    at geometric frequencies 1…1e-4. What can't be shared out is 0.
    """
    share = width // (2 * len(size)) * 2
    coordinates = torch.tensor(list(itertools.product(*map(range, size))))
    parts = [
        sinusoidal_embedding(axis, share, frequency_shift=0)
        for axis in reversed(coordinates.unbind(1))
    ]
    return F.pad(torch.cat(parts, 1), (0, width - share * len(size)))


class DiT(nn.Module):
    """The network: (x_t, noise level, class) → a grid of the same size.

    size: of the grid, in patches. in_channels, out_channels: of a patch. options: the other sizes;
    its patch says nothing here. classes: 0, or the number of classes; class number `classes` then
    means "no class". captions: tokens and length of captions, or None; a vector of the whole is
    added to the noise level's. text_width, text_layers: sizes of the encoder of these. recompute:
    keep only what goes between the blocks for the way back and compute the rest again.
    """

    def __init__(
        self,
        *,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        options: DiTOptions,
        classes: int = 0,
        dropout: float = 0.0,
        captions: tuple[int, int] | None = None,
        text_width: int = 64,
        text_layers: int = 2,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        width = options.width
        self.size = tuple(size)
        self.recompute = recompute
        self.time_embedding = nn.Sequential(
            nn.Linear(_WAVES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.class_embedding = nn.Embedding(classes + 1, width) if classes else None
        self.inlet = nn.Linear(in_channels, width)
        self.register_buffer("positions", places(size, width), persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList(
            _Block(width, options.heads, dropout) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.modulation = nn.Linear(width, 2 * width)
        self.outlet = nn.Linear(width, out_channels)
        self._init_weights()
        # It has an initialisation of its own.
        self.text_encoder = None
        if captions is not None:
            vocabulary, length = captions
            self.text_encoder = TextEncoder(
                vocabulary=vocabulary,
                length=length,
                width=text_width,
                layers=text_layers,
                out=width,
            )

    def _init_weights(self) -> None:
        """Variance 1/mean fan, biases 0; blocks begin as the identity, the output as 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (*self.time_embedding, self.class_embedding):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for module in (*(block.modulation for block in self.blocks), self.modulation, self.outlet):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, out_channels, *size) of (b, in_channels, *size). t: levels (b,).

        condition: int64, classes (b,) or captions (b, length); None is without.
        """
        waves = sinusoidal_embedding(t, _WAVES, cosines_first=True, frequency_shift=0)
        emb_bw = self.time_embedding(waves)
        emb_bw = F.silu(told(emb_bw, condition, self.class_embedding, self.text_encoder)[0])
        x_btw = self.inlet(x.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            again = self.recompute and self.training
            x_btw = recomputed(block, x_btw, emb_bw) if again else block(x_btw, emb_bw)
        shift, scale = self.modulation(emb_bw)[:, None].chunk(2, -1)
        out_btc = self.outlet(self.norm(x_btw) * (1 + scale) + shift)
        return out_btc.transpose(1, 2).unflatten(2, self.size)


class _Block(nn.Module):
    """Attention, then dense layers, each scaled, shifted and gated by the level; both + input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.dropout = Dropout(dropout)

    def forward(self, x_btw: Tensor, emb_bw: Tensor) -> Tensor:
        """Return (b, t, w). emb_bw: after its SiLU."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb_bw)[:, None].chunk(
            6, -1
        )  # each b 1 w
        h = self.norm1(x_btw) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b h t e
        h = self.project(attend(q, k, v).transpose(1, 2).flatten(2))
        x_btw = x_btw + gate1 * self.dropout(h)
        h = self.norm2(x_btw) * (1 + scale2) + shift2
        h = self.down(F.gelu(self.up(h), approximate="tanh"))
        return x_btw + gate2 * self.dropout(h)
