"""Random changes of training images, on whole batches of native levels (b, c, h, w)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from poiesis.errors import ConfigError, suggest
from poiesis.rng import Draws

__all__ = ["AUGMENTATIONS", "augment", "check_names"]

# Padding of 4 at 32 px, as customary since He et al. 2016 (arXiv:1512.03385, section 4.2).
SHIFT = 8


def flip(x: Tensor, draws: Draws) -> Tensor:
    """Mirror left and right with probability 1/2."""
    chosen = draws.rand(1, 1, 1) < 0.5
    return torch.where(chosen.to(x.device), x.flip(3), x)


def flip_vertical(x: Tensor, draws: Draws) -> Tensor:
    """Mirror top and bottom with probability 1/2."""
    chosen = draws.rand(1, 1, 1) < 0.5
    return torch.where(chosen.to(x.device), x.flip(2), x)


def shift(x: Tensor, draws: Draws) -> Tensor:
    """Move by up to 1/8 of the side each way; the border pixels are repeated."""
    _, channels, height, width = x.shape
    rows, columns = (
        _moved(side, draws.randint(2 * (side // SHIFT) + 1, 1) - side // SHIFT).to(x.device)
        for side in (height, width)
    )
    sample = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _moved(side: int, by: Tensor) -> Tensor:
    return (torch.arange(side, device=by.device) + by).clamp(0, side - 1)


def quarter_turn(x: Tensor, draws: Draws) -> Tensor:
    """Turn square images by 0, 90, 180 or 270 degrees."""
    if x.shape[2] != x.shape[3]:
        size = f"{x.shape[3]} x {x.shape[2]}"
        raise ConfigError(f"data.augment = quarter-turn needs square images, these are {size}")
    turns = draws.randint(4).to(x.device)
    out = x.clone()
    for k in (1, 2, 3):
        out[turns == k] = x[turns == k].rot90(k, (2, 3))
    return out


AUGMENTATIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "flip": flip,
    "flip-vertical": flip_vertical,
    "shift": shift,
    "quarter-turn": quarter_turn,
}


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError, with a suggestion, for a name that is no augmentation."""
    for name in names:
        if name not in AUGMENTATIONS:
            hint = suggest(name, AUGMENTATIONS) or f"; known: {', '.join(AUGMENTATIONS)}"
            raise ConfigError(f"data.augment = {name!r} is unknown{hint}")


def augment(names: Sequence[str], x: Tensor, draws: Draws) -> Tensor:
    """Return the batch after the named changes, in their order; row i depends on its draws only."""
    check_names(names)
    for name in names:
        x = AUGMENTATIONS[name](x, draws)
    return x
