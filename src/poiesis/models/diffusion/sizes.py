"""Sizes of a network for small data: what the presets of denoising models take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from poiesis.models.diffusion.grids import padded, side_of
from poiesis.nn.dit import DiTOptions
from poiesis.spec import Grid, Spec, Vector

__all__ = ["fast_sizes", "network_sizes", "patches"]

_STEPS = 128
"""Steps of audio below which a resolution has attention; patches of it."""
_PATCHES = 8
"""Patches along the longer side of an image."""


def fast_sizes(spec: Spec, name: str) -> dict[str, Any]:
    """Return options of a network for minutes on a CPU: grids are folded to about 32 px.

    Audio is folded twice as much as by default.
    """
    if not isinstance(spec, Grid):
        return network_sizes(spec, name)
    if len(spec.size) == 1:
        return grid_sizes(spec, 512)
    fold = max(1, round(max(spec.size[-2:]) / 32))
    size = (*spec.size[:-2], *(-(-side // fold) for side in spec.size[-2:]))
    folded = network_sizes(Grid(channels=spec.channels, size=size), name)
    return {**folded, "fold": fold, "dit": patches(spec.size)}


def patches(size: Sequence[int]) -> DiTOptions:
    """Return a small transformer for grids of this size, of about 64 patches (audio: 128)."""
    along = _STEPS if len(size) == 1 else _PATCHES
    return DiTOptions(patch=max(1, round(max(size[-2:]) / along)))


def network_sizes(spec: Spec, name: str) -> dict[str, Any]:
    """Return options of a small and quick network: minutes on a CPU for images up to 32 px."""
    if isinstance(spec, Grid) and len(spec.size) == 1:
        return grid_sizes(spec)
    if isinstance(spec, Grid) and len(spec.size) == 3:
        frame = Grid(channels=spec.channels, size=spec.size[1:])
        return {**network_sizes(frame, name), **grid_sizes(spec)}
    if isinstance(spec, Vector):
        return {
            "network": "mlp",
            "channels": 256 if spec.features > 8 else 128,
            "blocks": 4,
            "attention": (),
            "batch_size": 256,
        }
    side = side_of(spec, name)
    assert isinstance(spec, Grid)
    rest: dict[str, Any] = {"dit": patches(spec.size)}
    if side <= 32:
        # Small images: many small steps of a light network teach more in the same minutes.
        rest |= {"batch_size": 32, "learning_rate": 2e-3}
    if side <= 16:
        return {"multipliers": (1, 2), "attention": (padded(side, 2) // 2,), **rest}
    levels = max(3, math.ceil(math.log2(side / 8)) + 1)
    attention = (padded(side, levels) // 2 ** (levels - 1),)
    if side <= 32:
        return {"channels": 16, "multipliers": (1, 2, 4), "attention": attention, **rest}
    return {"multipliers": (1, *[2] * (levels - 1)), "attention": attention, **rest}


def grid_sizes(spec: Grid, finest: int = 1024) -> dict[str, Any]:
    """Return options of a small network for audio, or for video beyond those for its frames.

    finest: steps of the first resolution of audio, at most; about as many as pixels of an image.
    """
    if len(spec.size) == 3:
        # A video is a batch of frames.
        return {"batch_size": max(4, min(32, 128 // spec.size[0]))}
    fold = 2 ** max(0, min(5, math.ceil(math.log2(spec.size[0] / finest))))
    steps = -(-spec.size[0] // fold)
    levels = max(1, min(5, math.ceil(math.log2(steps / _STEPS)) + 1))
    coarsest = padded(steps, levels) // 2 ** (levels - 1)
    wide = {"channels": 64 if fold > 1 else 32, "groups": 8, "fold": fold}
    widths = (1, *[2] * (levels - 1))
    rest = {"batch_size": 32, "dit": patches(spec.size)}
    return {**wide, "multipliers": widths, "attention": (coarsest,), **rest}
