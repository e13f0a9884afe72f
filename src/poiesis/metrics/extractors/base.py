"""What a feature extractor is: images in native integer levels to one feature row each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import CapabilityError, DataError

__all__ = ["Extractor"]


class Extractor(ABC):
    """A fixed network whose features distances between image sets are measured in.

    The attributes go into the passport of every number: numbers of extractors that differ in one
    of them can't be compared.
    """

    name: str
    """What it is called; `sha256` says what it is."""
    sha256: str
    """Hash of the weights."""
    layer: str
    """Where in the network the features are taken."""
    dims: int
    """Number of features."""
    resizer: str
    """How images come to the network's size; "none" where they are taken as they are."""
    dtype: str = "float32"
    """Arithmetic of the network."""
    levels: int
    """Images hold 0…levels-1."""
    classes: int = 0
    """Number of logits; 0 where it is no classifier."""

    net: nn.Module

    def features(
        self,
        images: Tensor,
        *,
        batch_size: int = 250,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return features (n, dims), float32 on the CPU, of images (n, c, h, w) in integer levels.

        progress is called with the size of each finished batch. Raises DataError for images that
        this extractor is not made for.
        """
        check("batch_size", batch_size, low=1)
        self._check(images)
        device = next((t.device for t in self._tensors()), torch.device("cpu"))
        rows = []
        # Fixed precision: features of bf16 arithmetic would be another extractor's.
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for batch in images.split(batch_size):
                rows.append(self._forward(batch.to(device)).float().cpu())
                if progress is not None:
                    progress(len(batch))
        return torch.cat(rows) if rows else torch.empty(0, self.dims)

    def head(self, features: Tensor) -> Tensor:
        """Return class logits (n, classes) of features; raises CapabilityError if it has none."""
        raise CapabilityError(
            f"the extractor {self.name!r} is no classifier, so it gives no Inception Score; "
            "use inception, digits, mnist, fashion-mnist or cifar10-jpeg"
        )

    def logits(self, images: Tensor, *, batch_size: int = 250) -> Tensor:
        """Return class logits (n, classes) of images (n, c, h, w); raises CapabilityError."""
        return self.head(self.features(images, batch_size=batch_size))

    def to(self, device: torch.device | str) -> Extractor:
        """Move the network to a device and return self."""
        self.net.to(device)
        return self

    @abstractmethod
    def _forward(self, images: Tensor) -> Tensor:
        """Return features (b, dims) of checked images."""

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.is_floating_point():
            raise DataError(
                f"{images.dtype} images of shape {tuple(images.shape)}: extractors take integer "
                "levels of shape (n, channels, height, width)"
            )
        low, high = (int(v) for v in images.aminmax()) if images.numel() else (0, 0)
        if low < 0 or high >= self.levels:
            raise DataError(
                f"levels {low}…{high}, but the extractor {self.name!r} is set to "
                f"0…{self.levels - 1}: use images in the data set's native levels"
            )

    def _tensors(self) -> list[Tensor]:
        return [*self.net.parameters(), *self.net.buffers()]
