"""Whether pictures show what captions of the set `shapes` say, read from their pixels alone.

A pixel is taken apart into background and the nearest of the set's colours; what hangs together in
one colour is a shape. Its area and centre of mass fix what each kind of shape would look like
there, and the kind that differs least is the one seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from poiesis.data.sources.shapes import (
    COLOURS,
    KINDS,
    RADII,
    RELATIONS,
    SIDE,
    Caption,
    Shape,
    coverage,
    parse,
)
from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate, mean_estimate

__all__ = ["SeenShape", "caption_agreement", "read_shapes"]

_AREAS = {"circle": math.pi, "square": 3.24, "triangle": 2.0, "cross": 2.3616}
"""Area of each kind at radius 1."""
_LEAST_AREA = 10.0
"""Pixels; the smallest of the set has 26. Less is a speck, no shape."""
_FOREIGN = 80.0
"""Distance in RGB from all colours of the set and their blends with the background."""
_CLEAN = 16.0
"""Pixels of specks and foreign colours that a picture may have."""
_MISFIT = 0.35
"""Share of its area in which a shape may differ from its kind."""
_BORDER = (RADII["small"][1] + RADII["large"][0]) / 2
_APART = 3.0
"""Least distance along its axis that a relation needs, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SeenShape:
    """A shape found in a picture."""

    size: str
    colour: str
    kind: str | None
    """None for no shape of the set."""
    x: float
    y: float
    """Centre of its box, in pixels from the top left."""
    misfit: float
    """Share of its area that differs from its kind."""


def read_shapes(image: Tensor) -> tuple[list[SeenShape], float]:
    """Return the shapes of a picture, uint8 (3, 32, 32), and the pixels of anything else."""
    pixels = image.permute(1, 2, 0).double().numpy()
    background = np.median(pixels.reshape(-1, 3), axis=0)
    away = pixels - background
    towards = np.array(list(COLOURS.values())) - background
    # How far each pixel went from the background towards each colour, and what that leaves.
    shares = (away @ towards.T / (towards**2).sum(1)).clip(0, 1.1)
    left = np.linalg.norm(away[:, :, None] - shares[..., None] * towards, axis=-1)
    nearest = left.argmin(-1)
    painted = np.take_along_axis(shares, nearest[..., None], -1)[..., 0] > 0.5
    foreign = painted & (left.min(-1) > _FOREIGN)
    other = float(foreign.sum())
    found = []
    for number, colour in enumerate(COLOURS):
        labelled: Any = ndimage.label(painted & ~foreign & (nearest == number))
        parts, count = labelled
        for part in range(1, count + 1):
            inside = parts == part
            edge = np.asarray(ndimage.binary_dilation(inside, np.ones((3, 3))), bool) & ~painted
            share = torch.from_numpy(shares[..., number].clip(0, 1) * (inside | edge))
            if float(share.sum()) < _LEAST_AREA:
                other += float(share.sum())
            else:
                found.append(_recognise(share, colour))
    return found, other


def _recognise(share: Tensor, colour: str) -> SeenShape:
    """Return the shape that covers such a share of each pixel, (SIDE, SIDE)."""
    area = float(share.sum())
    place = torch.arange(SIDE) + 0.5
    x = float((share.sum(0) * place).sum()) / area
    y = float((share.sum(1) * place).sum()) / area
    best: SeenShape | None = None
    for kind in KINDS:
        radius = math.sqrt(area / _AREAS[kind])
        middle = y - radius / 3 if kind == "triangle" else y
        drawn = coverage(kind, *(torch.tensor([value]) for value in (x, middle, radius)))[0]
        misfit = float((drawn - share).abs().sum()) / area
        if best is None or misfit < best.misfit:
            size = "small" if radius < _BORDER else "large"
            known = kind if misfit <= _MISFIT else None
            best = SeenShape(size=size, colour=colour, kind=known, x=x, y=middle, misfit=misfit)
    assert best is not None
    return best


def _is(seen: SeenShape, said: Shape) -> bool:
    same = (seen.colour, seen.kind) == (said.colour, said.kind)
    return same and said.size in (None, seen.size)


def _agrees(image: Tensor, caption: Caption) -> bool:
    """Return whether a picture shows a caption's shapes, placed as it says, and nothing else."""
    seen, other = read_shapes(image)
    said = [caption.first] + ([caption.second] if caption.second else [])
    if len(seen) != len(said) or other > _CLEAN:
        return False
    for order in itertools.permutations(seen):
        if not all(map(_is, order, said)):
            continue
        if caption.relation is None:
            return True
        right, down = RELATIONS[caption.relation]
        dx, dy = order[1].x - order[0].x, order[1].y - order[0].y
        along, across = (dx * right, dy) if right else (dy * down, dx)
        if along >= max(_APART, abs(across)):
            return True
    return False


def caption_agreement(images: Tensor, captions: Sequence[str]) -> Estimate:
    """Return the share of pictures, uint8 (n, 3, 32, 32), that show what their captions say.

    Every word counts: number, colours, kinds and, where they are said, sizes and places. Raises
    DataError for pictures of another shape and captions of another form.
    """
    if images.shape[1:] != (3, SIDE, SIDE) or images.dtype != torch.uint8:
        what = f"pictures of shape {tuple(images.shape[1:])}, {images.dtype}"
        raise DataError(f"{what}: captions of shapes are for uint8 (3, {SIDE}, {SIDE})")
    if len(images) != len(captions):
        raise DataError(f"{len(images)} pictures, {len(captions)} captions: give one for each")
    right = [_agrees(image, parse(text)) for image, text in zip(images, captions, strict=True)]
    return mean_estimate(np.array(right, np.float64), low=0, high=1)
