"""The latent space of a trained model, explored by way of `encode` and `decode` alone.

`poiesis.latent(run)` opens it; the functions here take what it returns.
"""

from __future__ import annotations

from poiesis.apply.latent.maps import METHODS, Map, latent_map
from poiesis.apply.latent.pictures import SUFFIXES, Pictures, check_path, write
from poiesis.apply.latent.space import LatentSpace, Point, latent
from poiesis.apply.latent.ways import (
    Direction,
    Neighbours,
    Traversal,
    arithmetic,
    direction,
    interpolate,
    neighbours,
    random_walk,
    traversal,
)

__all__ = [
    "METHODS",
    "SUFFIXES",
    "Direction",
    "LatentSpace",
    "Map",
    "Neighbours",
    "Pictures",
    "Point",
    "Traversal",
    "arithmetic",
    "check_path",
    "direction",
    "interpolate",
    "latent",
    "latent_map",
    "neighbours",
    "random_walk",
    "traversal",
    "write",
]
