"""Square images whose side is a power of two, as networks that halve and double them need."""

from __future__ import annotations

import math

from poiesis.errors import SpecError
from poiesis.spec import Grid, Spec

__all__ = ["padded_size", "padded_view"]


def padded_size(spec: Spec, name: str, *, most: int = 256) -> int:
    """Return the side of the padded square image, a power of two of at least 8.

    Raises SpecError, in the words of model `name`, for other data and for more than `most` px.
    """
    if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
        raise SpecError(f"{name} learns images of 1 to 4 channels, not {spec}")
    if max(spec.size) > most:
        raise SpecError(f"{name} takes images up to {most} px, not {spec.size}; resize them")
    return max(8, 2 ** math.ceil(math.log2(max(spec.size))))


def padded_view(spec: Spec, size: int) -> Grid:
    """Return the view of images in [-1, 1], padded to size x size px."""
    assert isinstance(spec, Grid)
    return Grid(channels=spec.channels, size=(size, size), domain="signed", levels=spec.levels)
