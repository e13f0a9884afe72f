"""Coloured shapes with captions, drawn from a seed: "a small red circle left of a blue square".

A picture shows one or two shapes. A few combinations (`UNSEEN_SHAPES`, `UNSEEN_PAIRS`) never occur
in the training and validation parts; each caption of the test part has at least one of them. So the
test part asks whether a model composes what it learned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.arrays import array_images
from poiesis.data.sources.captions import tokenize
from poiesis.data.sources.splits import MemoryRows, assemble
from poiesis.errors import DataError
from poiesis.rng import generator

__all__ = [
    "COLOURS",
    "KINDS",
    "RADII",
    "RELATIONS",
    "SIDE",
    "UNSEEN_PAIRS",
    "UNSEEN_SHAPES",
    "Caption",
    "Shape",
    "coverage",
    "draw",
    "invent",
    "open_shapes",
    "parse",
]

SIDE = 32
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 40),
    "purple": (150, 50, 190),
    "black": (25, 25, 30),
}
KINDS = ("circle", "square", "triangle", "cross")
RADII = {"small": (3.6, 4.2), "large": (6.0, 6.6)}
"""Half the side of a shape's box, in pixels."""
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""Where the second shape lies as seen from the first: (right, down)."""
UNSEEN_SHAPES = ("yellow triangle", "purple square")
"""What the training part never shows: shapes of these colours."""
UNSEEN_PAIRS = (("green", "yellow"), ("red", "black"), ("blue", "purple"))
"""Nor two shapes of these colours in one picture."""
COUNTS = {"train": 20_000, "validation": 1_000, "test": 2_000}
_SINGLE = 0.25  # share of pictures with one shape
_MARGIN, _GAP = 1.0, 2.0  # pixels to the edge and between the two boxes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape as a caption names it; size None is not said."""

    size: str | None
    colour: str
    kind: str

    def __str__(self) -> str:
        return " ".join(["a", *([self.size] if self.size else []), self.colour, self.kind])


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One shape, or a first one and how it lies to a second."""

    first: Shape
    relation: str | None = None
    second: Shape | None = None

    def __str__(self) -> str:
        if self.relation is None:
            return str(self.first)
        return f"{self.first} {self.relation} {self.second}"

    @property
    def held_out(self) -> bool:
        """Whether it has a combination that the training part never shows."""
        shapes = [self.first] + ([self.second] if self.second else [])
        if any(f"{shape.colour} {shape.kind}" in UNSEEN_SHAPES for shape in shapes):
            return True
        colours = {shape.colour for shape in shapes}
        return any(colours == set(pair) for pair in UNSEEN_PAIRS)


_ONE = rf"a (?:({'|'.join(RADII)}) )?({'|'.join(COLOURS)}) ({'|'.join(KINDS)})"
_CAPTION = re.compile(rf"{_ONE}(?: ({'|'.join(RELATIONS)}) {_ONE})?")


def parse(text: str) -> Caption:
    """Return what a caption says; raises DataError for a text of another form."""
    found = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if found is None:
        raise DataError(
            f"{text!r} is no caption of shapes; they read as 'a red circle' or "
            "'a small red circle left of a blue square'"
        )
    size, colour, kind, relation, *other = found.groups()
    first = Shape(size=size, colour=colour, kind=kind)
    if relation is None:
        return Caption(first=first)
    second = Shape(size=other[0], colour=other[1], kind=other[2])
    return Caption(first=first, relation=relation, second=second)


# -- drawing --------------------------------------------------------------------------------------


def coverage(kind: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return the share of each pixel that a shape covers, (n, SIDE, SIDE) in [0, 1].

    x, y: the centre of its box; radius: half its side; all (n,), in pixels from the top left.
    """
    place = torch.arange(SIDE) + 0.5
    dx = (place - x[:, None])[:, None, :].expand(-1, SIDE, -1)
    dy = (place - y[:, None])[:, :, None].expand(-1, -1, SIDE)
    across, r = dx.abs(), radius[:, None, None]
    if kind == "circle":
        distance = torch.hypot(dx, dy) - r
    elif kind == "square":
        distance = torch.maximum(across, dy.abs()) - 0.9 * r  # about as large as the circle
    elif kind == "triangle":
        distance = torch.maximum(dy - r, (2 * across - dy - r) / 5**0.5)
    else:
        arm = 0.36 * r
        upright = torch.maximum(across - arm, dy.abs() - r)
        distance = torch.minimum(upright, torch.maximum(across - r, dy.abs() - arm))
    return (0.5 - distance).clamp(0, 1)


def _places(axis: Tensor, radii: Tensor, source: torch.Generator) -> Tensor:
    """Return centres (n, shape, xy) of shapes of radii (n, shape).

    axis: (n, xy), the place of the second shape as in `RELATIONS`; zeros where there is none.
    """

    def rand(low: Tensor | float, high: Tensor | float) -> Tensor:
        return low + (high - low) * torch.rand(len(radii), generator=source)

    first, second = radii.unbind(1)
    low, high = _MARGIN + radii, SIDE - _MARGIN - radii
    # Along the axis of the relation the free room is shared among both edges and the gap; across
    # it the centres differ by less than half as much.
    room = SIDE - 2 * _MARGIN - _GAP - 2 * (first + second)
    start = low[:, 0] + rand(0, room / 2)
    end = high[:, 1] - rand(0, room / 2)
    beside = rand(low[:, 0], high[:, 0])
    reach = (end - start) / 2
    least = torch.maximum(low[:, 1], beside - reach)
    most = torch.minimum(high[:, 1], beside + reach)
    along, across = torch.stack([start, end], 1), torch.stack([beside, rand(least, most)], 1)
    along = torch.where(axis.sum(1, keepdim=True) < 0, SIDE - along, along)
    related = torch.where(
        axis[:, :1, None] != 0, torch.stack([along, across], 2), torch.stack([across, along], 2)
    )
    alone = torch.stack([rand(low[:, 0], high[:, 0]), rand(low[:, 0], high[:, 0])], 1)
    return torch.where((axis != 0).any(1)[:, None, None], related, alone[:, None])


def draw(captions: list[Caption], source: torch.Generator) -> Tensor:
    """Return a picture of each caption, uint8 (n, 3, SIDE, SIDE)."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(len(captions), *shape, generator=source)

    pairs = [(caption.first, caption.second or caption.first) for caption in captions]
    known = [[-1 if s.size is None else list(RADII).index(s.size) for s in pair] for pair in pairs]
    sizes = torch.tensor(known)
    sizes = torch.where(sizes < 0, (rand(2) < 0.5).long(), sizes)
    low, high = torch.tensor(list(RADII.values()))[sizes].unbind(-1)
    radii = low + (high - low) * rand(2)
    axis = torch.tensor([RELATIONS.get(caption.relation or "", (0, 0)) for caption in captions])
    places = _places(axis, radii, source)
    shade = 225 + 27 * rand(1) + 6 * (rand(3) - 0.5)
    image = shade[:, :, None, None].expand(-1, -1, SIDE, SIDE).clone()
    for place in range(2):
        paint = torch.tensor([COLOURS[pair[place].colour] for pair in pairs]).float()
        paint = (paint + 24 * (rand(3) - 0.5))[:, :, None, None]
        for kind in KINDS:
            shown = [c.first if place == 0 else c.second for c in captions]
            rows = [row for row, shape in enumerate(shown) if shape and shape.kind == kind]
            x, y = places[rows, place].unbind(1)
            share = coverage(kind, x, y, radii[rows, place])[:, None]
            image[rows] += (paint[rows] - image[rows]) * share
    return image.round().clamp(0, 255).to(torch.uint8)


def invent(n: int, source: torch.Generator, *, held_out: bool) -> list[Caption]:
    """Return n captions at random: all with a held-out combination, or all without."""
    found: list[Caption] = []
    options = (4, len(COLOURS), len(KINDS), 4, len(COLOURS), len(KINDS), len(RELATIONS))
    while len(found) < n:
        for alone, *rest in torch.rand(n, 1 + len(options), generator=source).tolist():
            picked = [int(share * count) for share, count in zip(rest, options, strict=True)]
            first, second = _shape(*picked[:3]), _shape(*picked[3:6])
            if (first.colour, first.kind) == (second.colour, second.kind):
                continue
            caption = Caption(first=first, relation=list(RELATIONS)[picked[6]], second=second)
            if alone < _SINGLE:
                caption = Caption(first=first)
            if caption.held_out == held_out:
                found.append(caption)
    return found[:n]


def _shape(size: int, colour: int, kind: int) -> Shape:
    return Shape(size=(None, None, *RADII)[size], colour=list(COLOURS)[colour], kind=KINDS[kind])


def open_shapes(config: DataConfig) -> DataSet:
    """Return 20,000 training, 1,000 validation and 2,000 test pictures with captions."""
    texts: dict[str, list[str]] = {}
    rows: dict[str, MemoryRows] = {}
    for part, count in COUNTS.items():
        source = generator("shapes", part)
        captions = invent(count, source, held_out=part == "test")
        pictures = [draw(captions[at : at + 1000], source) for at in range(0, count, 1000)]
        texts[part] = [str(caption) for caption in captions]
        rows[part] = MemoryRows(torch.cat(pictures), None)
    captions, tokens, _ = tokenize(texts, "shapes")
    for part, y in tokens.items():
        rows[part].y = y
    images = array_images("shapes", rows, (), config)
    images.captions = captions
    shapes = [f"a {name}" for name in UNSEEN_SHAPES]
    pairs = [f"{a} with {b}" for a, b in UNSEEN_PAIRS]
    images.notes["held out of training"] = ", ".join(shapes + pairs)
    return assemble(images, config)
