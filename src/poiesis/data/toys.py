"""Known distributions in the plane, on which one can see what a model does.

Each is uniform over some centres or along some curves, plus round Gaussian noise. Ring: Metz et
al., Unrolled GANs, arXiv:1611.02163, section 3.1. Grid: Srivastava et al., VEEGAN,
arXiv:1705.07761, section 5.1. The moons are scikit-learn's `make_moons`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from poiesis.rng import mix

__all__ = ["TOYS", "Toy"]

_POINTS = 257
"""Corners of a curve; its straight pieces then lie within 0.0003 of it."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A distribution in the plane: a place on one of some shapes, all as likely, plus noise."""

    name: str
    summary: str
    label: str
    """What a class is: a mode, an arm, a moon."""
    sigma: float
    """Standard deviation of the noise, in each direction."""
    shapes: tuple[np.ndarray, ...] = field(repr=False)
    """Of each class the corners of its curve, float64 (corners, 2); of a mode its centre (1, 2)."""

    @property
    def modes(self) -> np.ndarray | None:
        """Centres of the modes, (modes, 2); None if the shapes are curves."""
        return None if len(self.shapes[0]) > 1 else np.concatenate(self.shapes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: their numbers."""
        return tuple(map(str, range(len(self.shapes))))

    def draw(self, n: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
        """Return n independent rows, float64 (n, 2), and their classes, int64 (n,), by a key."""
        random = np.random.default_rng(mix("toy", self.name, *key))
        label = random.integers(len(self.shapes), size=n)
        place, noise = random.random(n), random.standard_normal((n, 2))
        x = np.stack([_along(shape, place) for shape in self.shapes])[label, np.arange(n)]
        return x + self.sigma * noise, label


def _along(shape: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the points (n, 2) at shares in [0, 1] of a curve's length."""
    steps = np.linalg.norm(np.diff(shape, axis=0), axis=1)
    length = np.concatenate([[0.0], steps.cumsum()])
    return np.stack([np.interp(share * length[-1], length, axis) for axis in shape.T], 1)


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _arms() -> tuple[np.ndarray, np.ndarray]:
    """Return the arms of an Archimedean spiral of 1.25 turns, from radius 1/3 to 2, 2/3 apart."""
    angle = np.linspace(0.5 * math.pi, 3 * math.pi, _POINTS)
    arm = (2 * angle / angle[-1])[:, None] * _circle(angle)
    return arm, -arm


_HALF = np.linspace(0, math.pi, _POINTS)

TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        Toy(
            name="ring",
            summary="8 Gaussians on a circle of radius 2, sigma 0.02",
            label="mode",
            sigma=0.02,
            shapes=tuple(2 * _circle(np.array([k * math.pi / 4])) for k in range(8)),
        ),
        Toy(
            name="grid",
            summary="25 Gaussians, 5 x 5 from -4 to 4, sigma 0.05",
            label="mode",
            sigma=0.05,
            shapes=tuple(
                np.array([[2.0 * column - 4, 2.0 * row - 4]])
                for row in range(5)
                for column in range(5)
            ),
        ),
        Toy(
            name="swirl",
            summary="spiral of two arms, 1.25 turns out to radius 2, sigma 0.05",
            label="arm",
            sigma=0.05,
            shapes=_arms(),
        ),
        Toy(
            name="moons",
            summary="two half circles of radius 1, one inside the other, sigma 0.05",
            label="moon",
            sigma=0.05,
            shapes=(_circle(_HALF), np.array([1, 0.5]) - _circle(_HALF)),
        ),
    )
}
