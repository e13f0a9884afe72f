"""A fixed network of random convolutions: features for images of any size and number of channels.

Untrained features see colour, contrast, texture and coarse layout, but no meaning; their numbers
compare models on one data set, and compare with nobody else's. He-scaled random filters, as in
Saxe et al. 2011, "On Random Weights and Unsupervised Feature Learning".
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.extractors.base import Extractor

__all__ = ["RandomExtractor"]

_WIDTHS = (16, 16, 32)
_CHANNELS = 4
_GRID = 2
_SEED = 20240


class RandomExtractor(Extractor):
    """Three blocks of random 3x3 convolution, ReLU and 2x2 averaging; means over a 2x2 grid each.

    images: 1 to 4 channels, at least 4x4, in levels 0…levels-1. The filters come from NumPy's
    PCG64, so they are the same on every machine; `sha256` is over their bytes.
    """

    net: nn.ModuleList
    name = "random"
    layer = "blocks 1-3"
    resizer = "none"
    dims = sum(_WIDTHS) * _GRID * _GRID

    def __init__(self, levels: int = 256) -> None:
        check("levels", levels, low=2)
        self.levels = levels
        rng = np.random.Generator(np.random.PCG64(_SEED))
        digest = hashlib.sha256()
        self.net = nn.ModuleList()
        inner = _CHANNELS
        for width in _WIDTHS:
            filters = rng.standard_normal((width, inner, 3, 3)) * np.sqrt(2 / (9 * inner))
            weight = torch.from_numpy(filters.astype(np.float32))
            digest.update(weight.numpy().tobytes())
            conv = nn.Conv2d(inner, width, 3, padding=1, bias=False)
            conv.weight = nn.Parameter(weight, requires_grad=False)
            self.net.append(conv)
            inner = width
        self.sha256 = digest.hexdigest()

    def _forward(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        x = images.float() * (2 / (self.levels - 1)) - 1
        rows = []
        for index, conv in enumerate(self.net):
            weight = conv.get_parameter("weight")
            if not index:
                # Fewer channels use the first filters' planes, scaled to the same variance.
                weight = weight[:, :channels] * (_CHANNELS / channels) ** 0.5
            x = F.conv2d(x, weight, padding=1).relu()
            if min(x.shape[2:]) > _GRID:
                x = F.avg_pool2d(x, 2)
            rows.append(F.adaptive_avg_pool2d(x, _GRID).flatten(1))
        return torch.cat(rows, 1)

    def _check(self, images: Tensor) -> None:
        super()._check(images)
        _, channels, *size = images.shape
        if not 1 <= channels <= _CHANNELS or min(size) < 4:
            raise DataError(
                f"images of shape {tuple(images.shape[1:])}: the extractor 'random' takes 1 to "
                f"{_CHANNELS} channels of at least 4x4"
            )
