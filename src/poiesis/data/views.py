"""From a data set's native tensors to a model's view of them, and back.

Padding keeps pixels as they are: 28 px become 32 by a border of the lowest level, cut off again on
the way back. Nothing is ever resized to please a network; only a stage of a growing network may
ask for a smaller view, which is made by averaging whole blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from poiesis.errors import SpecError
from poiesis.rng import generator
from poiesis.spec import Grid, Spec, Tokens, Vector

__all__ = ["View", "is_picture"]


def is_picture(y: Tensor) -> bool:
    """Return whether conditions (b, …) of a split are pictures."""
    return y.dtype == torch.uint8 and y.ndim == 4


class View:
    """Converts native tensors of spec `source` to a model's spec `target` and back."""

    def __init__(self, source: Spec, target: Spec) -> None:
        self.source = source
        self.target = target
        # Vectors and audio are standardised by their codec: models see them as they are, audio
        # perhaps with silence on both sides.
        self._same = isinstance(source, Vector) or (source == target and _is_real(source))
        if self._same:
            fits = source == target
        elif isinstance(source, Grid) and _is_real(source):
            fits = (
                isinstance(target, Grid)
                and _is_real(target)
                and source.channels == target.channels
                and len(source.size) == len(target.size)
                and all(a <= b for a, b in zip(source.size, target.size, strict=True))
            )
        elif isinstance(source, Grid) and isinstance(target, Tokens):
            fits = source.dims == target.length and source.levels <= target.vocabulary
        elif isinstance(source, Grid) and isinstance(target, Grid):
            fits = source.channels == target.channels and len(source.size) == len(target.size)
            for a, b in zip(source.size, target.size, strict=False):
                fits = fits and (b >= a or a % b == 0)
        elif isinstance(source, Tokens) and isinstance(target, Tokens):
            fits = source.stream == target.stream and source.vocabulary <= target.vocabulary
        else:
            fits = False
        if not fits:
            raise SpecError(f"data of the form ({source}) can't be viewed as ({target})")

    def apply(self, x: Tensor, rand: Callable[..., Tensor] | None = None) -> Tensor:
        """Return the view of native rows (b, *source.shape).

        rand(*shape) gives uniform draws (b, *shape) for a random binarisation; without it seed 0
        is used, so that held-out data stay the same.
        """
        if self._same or not isinstance(self.source, Grid):
            return x
        if isinstance(self.target, Tokens):
            # Pixels in raster order, the channels of a pixel next to one another.
            return x.movedim(1, -1).reshape(len(x), -1).long()
        assert isinstance(self.target, Grid)
        x = self._pad(x)
        if _is_real(self.target):
            return x
        if self.target.domain == "levels":
            return x.long()
        top = self.source.levels - 1
        x = x.float()
        if self.target.size != tuple(x.shape[2:]):
            factor = [a // b for a, b in zip(x.shape[2:], self.target.size, strict=True)]
            x = functional.avg_pool2d(x, factor)
        x = x / top
        if self.target.domain == "bits" and top > 1:
            if rand is None:
                source = generator("bits", 0)
                draws = torch.rand(x.shape, generator=source).to(x.device)
            else:
                draws = rand(*x.shape[1:])
            x = (x > draws).float()
        return x * 2 - 1 if self.target.domain == "signed" else x

    def condition(self, y: Tensor | None) -> Tensor | None:
        """Return conditions as a model sees them: pictures as it sees rows, others as they are."""
        if y is None or not is_picture(y):
            return y
        assert isinstance(self.source, Grid) and isinstance(self.target, Grid)
        source = dataclasses.replace(self.source, channels=y.shape[1])
        return View(source, dataclasses.replace(self.target, channels=y.shape[1])).apply(y)

    def invert(self, x: Tensor) -> Tensor:
        """Return native rows: uint8 levels for grids (rounded and clamped), int64 for tokens.

        Vectors and audio are float32, as they are.
        """
        if self._same:
            return x.float()
        if not isinstance(self.source, Grid):
            return x
        if _is_real(self.source):
            return self._cut(x.float())
        top = self.source.levels - 1
        if isinstance(self.target, Tokens):
            rows = x.reshape(len(x), *self.source.size, self.source.channels)
            return rows.movedim(-1, 1).clamp(0, top).to(torch.uint8)
        assert isinstance(self.target, Grid)
        if self.target.domain != "levels":
            x = (x + 1) / 2 if self.target.domain == "signed" else x
            x = (x.float() * top).round()
        return self._cut(x).nan_to_num().clamp(0, top).to(torch.uint8)

    def _cut(self, x: Tensor) -> Tensor:
        """Take off what `_pad` put on."""
        assert isinstance(self.source, Grid)
        for axis, size in enumerate(self.source.size, start=2):
            if x.shape[axis] > size:
                x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
        return x

    def _pad(self, x: Tensor) -> Tensor:
        assert isinstance(self.source, Grid) and isinstance(self.target, Grid)
        pads: list[int] = []
        for have, want in zip(self.source.size, self.target.size, strict=True):
            extra = max(0, want - have)
            pads = [extra // 2, extra - extra // 2, *pads]
        return functional.pad(x, pads) if any(pads) else x


def _is_real(spec: Spec) -> bool:
    return isinstance(spec, Grid) and spec.domain == "real"
