"""Small convolutional classifiers, trained on one data set each by benchmarks/train_extractors.py.

Their penultimate layer is a feature space that knows what matters in that set. They were trained
with mild noise and blur; otherwise faint background noise, which no human sees, dominates every
distance. Weights are stored in float16, batch-norm statistics in float32; arithmetic is float32.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from poiesis.errors import DataError
from poiesis.metrics.extractors.base import Extractor

__all__ = ["FORMAT", "ClassifierExtractor", "SmallClassifier"]

FORMAT = "poiesis-classifier-1"
"""Value of "format" in the metadata of a weights file."""
_MOST_BYTES = 64 << 20
"""Largest weights file that is read: ours are under 1 MB."""


class SmallClassifier(nn.Module):
    """Blocks of two 3x3 convolutions with batch norm and ReLU; then a dense layer and a head.

    Input (b, channels, size, size) in [-1, 1]. The first convolution has the given stride; between
    the blocks comes 2x2 max-pooling, after the last an average over a pool x pool grid, which
    keeps the coarse layout.
    """

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        widths: tuple[int, ...],
        pool: int,
        dims: int,
        classes: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for index, width in enumerate(widths):
            if index:
                layers.append(nn.MaxPool2d(2))
            for step, inner in ((1 if index else stride, before), (1, width)):
                layers += [
                    nn.Conv2d(inner, width, 3, step, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.dense = nn.Linear(before * pool * pool, dims)
        self.head = nn.Linear(dims, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate layer, shape (b, dims), after its ReLU."""
        return self.dense(self.body(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits, shape (b, classes)."""
        return self.head(self.features(x))


class ClassifierExtractor(Extractor):
    """A `SmallClassifier` read from a .safetensors file that says itself what it is.

    Its images are of the size, channels and levels it was trained on; others raise DataError.
    """

    net: SmallClassifier

    def __init__(self, path: Path) -> None:
        about, weights, self.sha256 = _read(path)
        self.name = str(about["name"])
        self.layer = "penultimate"
        self.resizer = "none"
        self.shape: tuple[int, ...] = tuple(about["shape"])
        self.levels = int(about["levels"])
        self.classes = int(about["classes"])
        self.dims = int(about["dims"])
        self.accuracy = float(about["test_accuracy"])
        """Share of the test split classified right."""
        self.net = SmallClassifier(
            channels=self.shape[0],
            stride=int(about["stride"]),
            widths=tuple(about["widths"]),
            pool=int(about["pool"]),
            dims=self.dims,
            classes=self.classes,
        )
        state = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        try:
            self.net.load_state_dict(state)
        except RuntimeError:
            raise DataError(f"{str(path)!r} holds other layers than its metadata says") from None
        self.net.eval().requires_grad_(False)

    def head(self, features: Tensor) -> Tensor:
        """Return class logits (n, classes) of features (n, dims)."""
        return self.net.head(features.to(self.net.head.weight.device)).cpu()

    def _forward(self, images: Tensor) -> Tensor:
        return self.net.features(images.float() * (2 / (self.levels - 1)) - 1)

    def _check(self, images: Tensor) -> None:
        super()._check(images)
        shape = tuple(images.shape[1:])
        if shape != self.shape:
            raise DataError(
                f"images of shape {shape}, but the extractor {self.name!r} takes {self.shape} "
                "only: use its own data set, or --extractor random or inception"
            )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return (metadata, tensors, sha256) of a weights file; raises DataError."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{str(path)!r} has {size} bytes: no classifier of ours is so large")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata.get("about", "{}"))
    except OSError as error:
        raise DataError(f"can't read the extractor {str(path)!r}: {error.strerror}") from None
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no valid safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{str(path)!r} is no extractor of ours (its format is {metadata.get('format')!r}, "
            f"not {FORMAT!r}): train one with benchmarks/train_extractors.py"
        )
    bad = [name for name, value in weights.items() if not torch.isfinite(value.float()).all()]
    if bad:
        raise DataError(f"{str(path)!r} holds non-finite weights in {bad[0]!r}")
    return about, weights, sha256
