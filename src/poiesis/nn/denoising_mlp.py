"""A dense denoising network for vectors: residual layers, the noise level enters each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.nn.conditions import told
from poiesis.nn.dropout import Dropout
from poiesis.nn.unet import sinusoidal_embedding

__all__ = ["DenoisingMLP"]


class DenoisingMLP(nn.Module):
    """(x_t, noise level, class) → a vector, of the same shape unless told.

    features: values of a sample. width: units of every layer. layers: residual layers. classes: 0,
    or the number of classes; class number `classes` then means "no class". outputs: values that
    come out, default `features`. Shapes: b batch, f features, e embedding.
    """

    def __init__(
        self,
        *,
        features: int,
        width: int,
        layers: int,
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.time_embedding = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.class_embedding = nn.Embedding(classes + 1, width) if classes else None
        self.inlet = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.outlet = nn.Linear(width, outputs or features)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, x_bf: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (b, outputs). t: levels (b,). condition: int64 (b,) or None."""
        emb_be = self.time_embedding(sinusoidal_embedding(t, self.width))
        emb_be, _ = told(emb_be, condition, self.class_embedding)
        h = self.inlet(x_bf)
        for block in self.blocks:
            h = block(h, emb_be)
        return self.outlet(F.silu(self.norm(h)))


class _Block(nn.Module):
    """norm, scaled and shifted by the level; two linear layers; + input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.level = nn.Linear(width, 2 * width)
        self.first = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h_be: Tensor, emb_be: Tensor) -> Tensor:
        scale, shift = self.level(F.silu(emb_be)).chunk(2, dim=1)
        h = self.norm(h_be) * (1 + scale) + shift
        return h_be + self.second(self.dropout(F.silu(self.first(h))))
