"""What there is to see in a latent space: ways between codes, directions, dimensions, neighbours.

Each function takes a space that `latent` opened and returns pictures, which `write` brings to a
file. Shape letters: k points, s places along a way, z values of a code.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from poiesis.apply.latent.pictures import Pictures, pictures, store
from poiesis.apply.latent.space import Codes, LatentSpace, Point
from poiesis.config import check
from poiesis.errors import ConfigError, DataError
from poiesis.metrics.distances import squared_distances
from poiesis.metrics.representation import active_units, linear_probe
from poiesis.rng import generator
from poiesis.sampling import latent as ways
from poiesis.spec import Classes

__all__ = [
    "Direction",
    "Neighbours",
    "Traversal",
    "arithmetic",
    "direction",
    "interpolate",
    "neighbours",
    "random_walk",
    "traversal",
]

Metric = Literal["euclidean", "cosine"]


def interpolate(
    space: LatentSpace,
    points: Sequence[str] = (),
    *,
    steps: int = 10,
    way: ways.Way | None = None,
    seed: int = 0,
) -> Pictures:
    """Return one row of pictures on the way through two or more points.

    points: as in `LatentSpace.point`; default two samples drawn by seed. steps: pictures from one
    to the next, both included. way: default spherical where codes are of a normal prior, or
    posterior means under one, else linear. A conditional model decodes each by the class of the
    nearer point, or by a mixture of both classes where it can mix them.
    """
    check("steps", steps, low=2)
    if len(points) == 1:
        raise ConfigError(f"an interpolation needs two points or more, not {points[0]!r} alone")
    ends = space.points(tuple(points), 2, seed)
    if len(ends) < 2:
        raise DataError(f"{space.inputs.where}: one sample alone leads nowhere; name two points")
    if way is None:
        way = "spherical" if space.normal else "linear"
    z = ways.path(torch.stack([end.z for end in ends]), steps, way)
    nearer = [ends[round(place / (steps - 1))] for place in range(len(z))]
    labels: list[int | None] | Tensor = [end.label for end in nearer]
    model = space.trained.model
    if model.mixes_classes and isinstance(model.condition, Classes):
        classes = torch.tensor([end.label for end in ends])
        weights = torch.nn.functional.one_hot(classes, model.condition.count).float()
        labels = ways.path(weights, steps, "linear")
    native = space.decode(z, labels)
    columns = [f"{place / (steps - 1):.2g}" for place in range(len(z))]
    for number, end in enumerate(ends):
        columns[number * (steps - 1)] = space.class_name(end.label) or end.name
    title = f"From {' to '.join(_called(space, end) for end in ends)}"
    return pictures(space.trained, title, native[None], [""], columns)


def random_walk(
    space: LatentSpace,
    starts: Sequence[str] = (),
    *,
    steps: int = 60,
    step_size: float = 0.2,
    seed: int = 0,
) -> Pictures:
    """Return a row of pictures for each random walk.

    starts: as in `LatentSpace.point`; default one sample drawn by seed. step_size in (0, 1]: 0.1
    changes a little at a time, 1 jumps anywhere. In the long run a walk's places are distributed
    as a normal with the mean and covariance of the data's codes.
    """
    check("steps", steps, low=2)
    check("step_size", step_size, low=0, high=1, open_low=True)
    points = space.points(tuple(starts), 1, seed)
    z = torch.stack(
        [
            ways.walk(point.z, space.codes.z, steps, step_size, generator("walk", seed, number))
            for number, point in enumerate(points)
        ]
    )
    return _decoded(
        space,
        "A random walk" if len(points) == 1 else "Random walks",
        z,
        points,
        [str(place) for place in range(steps)],
        "step",
    )


@dataclass(frozen=True)
class Direction:
    """A direction in a latent space, what it does to some samples, and how sure it is.

    vector: (z,); adding it once leads from the mean of those without the attribute to the mean of
    those with it, as far as the direction goes. counts: samples with and without. accuracy: of a
    linear classifier on samples it was not fitted to, in [0, 1], chance being the larger group's
    share; None for too few. cosine: between difference of means and classifier's normal.
    """

    vector: Tensor
    counts: tuple[int, int]
    accuracy: float | None
    cosine: float
    shown: Pictures

    def save(self, path: Path) -> Path:
        """Write the vector as .npz, array `direction`."""
        buffer = io.BytesIO()
        np.savez(buffer, direction=self.vector.numpy())
        return store(path, buffer.getvalue())


def direction(
    space: LatentSpace,
    positive: Sequence[str],
    negative: Sequence[str] = (),
    *,
    points: Sequence[str] = (),
    how: Literal["mean", "classifier"] = "mean",
    strength: float = 1.5,
    steps: int = 9,
    seed: int = 0,
) -> Direction:
    """Find the direction of an attribute from labelled data, and move samples along it.

    positive, negative: classes that have the attribute and that have not (default: all others).
    how: the difference of the means of their codes, or the normal of a linear classifier. points:
    what is moved, default four samples without the attribute. strength: from minus so much to so
    much, 1 being the whole way from one group to the other. Raises DataError without labels.
    """
    check("strength", strength, low=0, high=100, open_low=True)
    check("steps", steps, low=2)
    groups = [{space.class_number(name) for name in names} for names in (positive, negative)]
    if not groups[0]:
        raise ConfigError("a direction needs the classes that have the attribute (positive)")
    if groups[0] & groups[1]:
        both = space.class_name(min(groups[0] & groups[1]))
        raise ConfigError(f"class {both} can't be positive and negative at once")
    labels = space.codes.labels
    assert labels is not None
    has = torch.tensor([label in groups[0] for label in labels])
    taken = torch.tensor([not negative or label in groups[0] | groups[1] for label in labels])
    z, has = space.codes.z[taken], has[taken]
    vectors = {"mean": ways.mean_difference(z, has), "classifier": ways.classifier_normal(z, has)}
    try:
        accuracy = linear_probe(z, has).value
    except DataError:
        accuracy = None  # fewer than five of a group
    known = space.inputs.labels
    assert known is not None
    without = [n for n, label in enumerate(known) if label not in groups[0]]
    if negative:
        without = [n for n in without if known[n] in groups[1]]
    if points:
        moved = [space.point(text) for text in points]
    else:
        moved = space.drawn(without, 4, seed)
    t = strength * _symmetric(steps)
    codes = torch.stack([point.z + t[:, None] * vectors[how] for point in moved])
    names = ", ".join(space.class_name(number) for number in sorted(groups[0]))
    title = f"Towards {names}" if how == "mean" else f"Towards {names}, by a linear classifier"
    return Direction(
        vectors[how],
        (int(has.sum()), int((~has).sum())),
        accuracy,
        float(torch.cosine_similarity(*vectors.values(), dim=0)),
        _decoded(space, title, codes, moved, [f"{value:.3g}" for value in t.tolist()], "strength"),
    )


@dataclass(frozen=True)
class Neighbours:
    """Nearest samples of some codes. names, distances: of each, from the nearest on."""

    names: list[list[str]]
    distances: list[list[float]]
    shown: Pictures


def neighbours(
    space: LatentSpace,
    points: Sequence[str] = (),
    *,
    k: int = 8,
    metric: Metric = "euclidean",
    seed: int = 0,
) -> Neighbours:
    """Find the samples whose codes lie nearest to those of points (default: three drawn by seed).

    A sample is not its own neighbour. The search is exact, among the samples that the space's
    limit lets in.
    """
    check("k", k, low=1)
    asked = space.points(tuple(points), 3, seed)
    names, distances, rows = [], [], []
    for point in asked:
        found = _nearest(space.codes, point, k, metric, but=[point])
        names.append([space.codes.inputs.names[place] for place, _ in found])
        distances.append([distance for _, distance in found])
        first = point.row
        if first is None:
            first = space.decode(point.z[None], [point.label])[0]
        near = [space.codes.inputs.fetch(place, place + 1)[0] for place, _ in found]
        rows.append(torch.stack([first, *near]))
    columns = ["", *(str(number + 1) for number in range(rows[0].shape[0] - 1))]
    labels = [_called(space, point) for point in asked]
    shown = pictures(space.trained, "Nearest in latent space", torch.stack(rows), labels, columns)
    return Neighbours(names, distances, shown)


def arithmetic(
    space: LatentSpace, a: str, b: str, c: str, *, k: int = 4, metric: Metric = "euclidean"
) -> Neighbours:
    """Decode a - b + c: what a has over b, given to c; and find the k samples nearest to it.

    a, b, c: points as in `LatentSpace.point`, which don't count as near to the result. A
    conditional model decodes by the class of c.
    """
    check("k", k, low=1)
    points = [space.point(text) for text in (a, b, c)]
    z = points[0].z - points[1].z + points[2].z
    result = Point("a - b + c", z, points[2].label)
    codes = torch.stack([*(point.z for point in points), z])
    native = space.decode(codes, [point.label for point in (*points, result)])
    found = _nearest(space.codes, result, k, metric, but=points)
    near = [space.codes.inputs.fetch(place, place + 1)[0] for place, _ in found]
    names = [_called(space, point) for point in points]
    columns = ["a", "b", "c", "a-b+c", *(f"near {number + 1}" for number in range(len(near)))]
    shown = pictures(
        space.trained,
        f"{names[0]} - {names[1]} + {names[2]}",
        torch.cat([native, torch.stack(near)])[None],
        [""],
        columns,
    )
    inputs = space.codes.inputs
    return Neighbours([[inputs.names[p] for p, _ in found]], [[d for _, d in found]], shown)


def _nearest(
    codes: Codes, point: Point, k: int, metric: Metric, *, but: Sequence[Point]
) -> list[tuple[int, float]]:
    """Return (row, distance) of the k nearest codes, from the nearest on, leaving some out."""
    x, y = point.z[None].double(), codes.z.double()
    if metric == "cosine":
        value = 1 - torch.cosine_similarity(x, y, dim=1)
    else:
        value = squared_distances(x, y)[0].sqrt()
    out = {other.name for other in but if other.row is not None}
    value[[n for n, name in enumerate(codes.inputs.names) if name in out]] = torch.inf
    order = value.argsort()[: min(k, int(value.isfinite().sum()))]
    if not len(order):
        raise DataError(f"{codes.inputs.where}: holds no other sample to be near to {point.name}")
    return [(place, float(value[place])) for place in order.tolist()]


@dataclass(frozen=True)
class Traversal:
    """Dimensions from the one that says most about the data on, and each one's pictures.

    order: their numbers; measure: what they are sorted by, kl, variance or share; values: of that
    measure, for the ones shown. active: how many dimensions vary over the data; total: the sum of
    the measure over all.
    """

    order: list[int]
    measure: Literal["kl", "variance", "share"]
    values: list[float]
    active: int
    total: float
    shown: Pictures


def traversal(
    space: LatentSpace,
    start: str | None = None,
    *,
    axes: Literal["dimensions", "components"] | None = None,
    dims: int = 10,
    reach: float = 2.5,
    steps: int = 9,
    seed: int = 0,
) -> Traversal:
    """Move a sample along each of the dims axes that matter most, one row of pictures for each.

    axes: the dimensions of the code, sorted by the mean KL of the posterior to the prior, by the
    variance of the code for models without one; or the principal components of the codes, sorted
    by their share of the variance, which is the default for codes on a grid. start: a point,
    default a sample drawn by seed. reach: from minus to plus so many standard deviations about
    the mean. Raises ConfigError for dimensions of a grid.
    """
    check("dims", dims, low=1)
    check("reach", reach, low=0, high=100, open_low=True)
    check("steps", steps, low=2)
    codes = space.codes
    if axes is None:
        axes = "components" if space.grid else "dimensions"
    if axes == "dimensions" and space.grid:
        raise ConfigError(
            f"a dimension of this {space.trained.name}'s latent is one value at one place of a "
            "grid, too little to see; use axes = components"
        )
    spread = codes.spread  # raises for a single sample
    if axes == "components":
        chosen, deviations, worth = ways.principal_axes(codes.z, dims)
        measure, total = "share", 1.0
        order = list(range(len(chosen)))
        names = [f"PC {n + 1}, {value:.1%}" for n, value in enumerate(worth.tolist())]
    else:
        kl = codes.kl
        measure = "variance" if kl is None else "kl"
        worth = codes.z.var(0) if kl is None else kl
        total = float(worth.sum())
        order = worth.argsort(descending=True, stable=True)[:dims].tolist()
        worth, deviations = worth[order], spread[order]
        chosen = torch.eye(codes.z.shape[1])[order]
        unit = "variance" if kl is None else "KL"
        names = [f"z{n}, {unit} {v:.3g}" for n, v in zip(order, worth.tolist(), strict=True)]
    point = space.points(() if start is None else (start,), 1, seed)[0]
    t = reach * _symmetric(steps)
    z = ways.traverse(point.z, codes.z.mean(0), chosen, deviations[:, None] * t)
    native = space.decode(z.flatten(0, 1), [point.label] * (len(chosen) * steps))
    shown = pictures(
        space.trained,
        f"{axes.capitalize()} of {_called(space, point)}",
        native.unflatten(0, z.shape[:2]),
        names,
        [f"{value:.3g}" for value in t.tolist()],
        "standard deviations",
    )
    return Traversal(order, measure, worth.tolist(), active_units(codes.z), total, shown)


def _symmetric(steps: int) -> Tensor:
    """Return steps numbers from -1 to 1; of an odd count the middle one is 0 exactly."""
    return 2 * torch.arange(steps) / (steps - 1) - 1


def _decoded(
    space: LatentSpace,
    title: str,
    z: Tensor,
    points: list[Point],
    columns: list[str],
    along: str,
) -> Pictures:
    """Return codes (k, s, z) decoded, a row for each point."""
    labels = [point.label for point in points for _ in range(z.shape[1])]
    native = space.decode(z.flatten(0, 1), labels).unflatten(0, z.shape[:2])
    names = [_called(space, point) for point in points]
    return pictures(space.trained, title, native, names, columns, along)


def _called(space: LatentSpace, point: Point) -> str:
    """Return a point's name, with its class where that is known."""
    if point.label is None or point.row is None:
        return point.name
    return f"{point.name} ({space.class_name(point.label)})"
