"""Dense generator and discriminator, for vectors and small images. Shape letters: b batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.nn.labels import LabelEmbedding
from poiesis.nn.mlp import mlp
from poiesis.spec import Spec

__all__ = ["DenseDiscriminator", "DenseGenerator"]

_leaky = partial(nn.LeakyReLU, 0.2)


class DenseGenerator(nn.Sequential):
    """z (b, z) → data (b, *shape) in the view's range.

    widths: hidden units. label_dim: numbers that stand for a class, beside z.
    """

    def __init__(
        self,
        latent: int,
        widths: Sequence[int],
        spec: Spec,
        *,
        classes: int = 0,
        label_dim: int = 50,
        batch_norm: bool = False,
    ) -> None:
        widths = (latent + (label_dim if classes else 0), *widths, spec.dims)
        super().__init__(*mlp(widths, _leaky, norm=nn.BatchNorm1d if batch_norm else None))
        self.depth = len(self)
        self.label = LabelEmbedding(classes, label_dim) if classes else None
        self.spec = spec

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return data; label: int64 (b,) or float (b, k), None without classes."""
        h = z if self.label is None else torch.cat((z, self.label(label)), dim=1)
        for layer in itertools.islice(self, self.depth):
            h = layer(h)
        x = h.unflatten(1, self.spec.shape)
        domain = getattr(self.spec, "domain", "real")
        if domain == "signed":
            return x.tanh()
        return x.sigmoid() if domain in ("unit", "bits") else x


class DenseDiscriminator(nn.Sequential):
    """Data (b, *shape) → logits (b,); with ``classify=True`` also logits of the classes (b, k).

    widths: hidden units. Classes are numbers beside the data, or projected on the last hidden units
    (arXiv:1802.05637), or told by a second head (classify).
    """

    def __init__(
        self,
        widths: Sequence[int],
        spec: Spec,
        *,
        classes: int = 0,
        label_dim: int = 50,
        projection: bool = False,
        classify: bool = False,
        dropout: float = 0.0,
    ) -> None:
        told = 0 if classify else classes
        beside = label_dim if told and not projection else 0
        super().__init__(*mlp((spec.dims + beside, *widths, 1), _leaky, dropout=dropout))
        self.depth = len(self)
        self.label = LabelEmbedding(told, beside) if beside else None
        self.projection = LabelEmbedding(told, widths[-1]) if told and projection else None
        self.classifier = nn.Linear(widths[-1], classes) if classify else None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, label: Tensor | None, classify: bool = False
    ) -> Any:
        """Return logits, or both kinds of them."""
        h = x.flatten(1)
        if self.label is not None:
            h = torch.cat((h, self.label(label)), dim=1)
        for layer in itertools.islice(self, self.depth - 1):
            h = layer(h)
        logit = self[self.depth - 1](h).flatten()
        if self.projection is not None:
            logit = logit + (self.projection(label) * h).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h)
        return logit
