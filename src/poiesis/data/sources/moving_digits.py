"""Handwritten digits that move through the frame and bounce off its edges, drawn when asked for.

The digits are MNIST's, at the scale of moving MNIST (Srivastava et al., arXiv:1502.04681): 28 of 64
pixels, or half of that. A clip is a function of its part and number. Paths are straight,
of constant speed, and mirrored at the edges, so the place at any time has a closed form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.data.codecs import VideoCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.splits import Images, assemble
from poiesis.data.sources.videos import refuse_options
from poiesis.errors import ConfigError, DataError
from poiesis.rng import generator

__all__ = ["COUNTS", "SIDES", "MovingDigits", "draw", "open_moving_digits", "places"]

SIDES = (32, 64)
"""Sides of the frame in pixels; the first is the default, data.resize chooses."""
COUNTS = {"train": 10_000, "validation": 1_000, "test": 1_000}
"""Clips of each part, whose digits are those of MNIST's part."""
SPEEDS = (0.03, 0.08)
"""Least and greatest way in a frame, as a share of the side."""
_GRID = 8
"""Places are in eighths of a pixel, so that weights between pixels are exact on every machine."""


def places(start: Tensor, velocity: Tensor, times: Tensor, room: float) -> Tensor:
    """Return where points are at times (t,), mirrored into [0, room], (…, t).

    start, velocity: (…,), a starting place in [0, room] and the way in a unit of time.
    """
    way = start[..., None] + velocity[..., None] * times
    return room - (room - way.remainder(2 * room)).abs()


def draw(digits: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return frames (b, t, side, side), float in 0…255, of a digit at places between pixels.

    digits: (b, d, d). corners: (b, t, 2), down and right, multiples of 1/8 in [0, side - d].
    """
    padded = F.pad(digits.float(), (1, 1, 1, 1))
    d = digits.shape[1]
    whole = corners.floor()
    share = (corners - whole)[..., None]
    at = torch.arange(side) - whole[..., None]  # (b, t, 2, side): which pixel of the digit
    near = at.clamp(-1, d).long() + 1
    far = (at - 1).clamp(-1, d).long() + 1
    b, t = corners.shape[:2]

    def rows(index: Tensor) -> Tensor:
        return padded.gather(1, index.reshape(b, t * side, 1).expand(-1, -1, d + 2))

    down = share[:, :, 0].expand(-1, -1, side).reshape(b, t * side, 1)
    mixed = (1 - down) * rows(near[:, :, 0]) + down * rows(far[:, :, 0])
    mixed = mixed.view(b, t, side, d + 2)

    def columns(index: Tensor) -> Tensor:
        return mixed.gather(3, index[:, :, None, :].expand(-1, -1, side, -1))

    right = share[:, :, 1, None, :]
    return (1 - right) * columns(near[:, :, 1]) + right * columns(far[:, :, 1])


@dataclass
class MovingDigits:
    """Clips by number, drawn at each fetch: rows of a part, and a split of them."""

    pool: Tensor
    """Digits (m, d, d) to choose from."""
    picks: Tensor
    """Which k of them each clip shows, int64 (n, k)."""
    start: Tensor
    """Their upper left corners in the first frame (n, k, 2), in pixels down and right."""
    velocity: Tensor
    """How far they go in a frame (n, k, 2)."""
    y: Tensor | None
    side: int
    times: Tensor
    """Of the frames, (t,)."""

    def __len__(self) -> int:
        return len(self.picks)

    def take(self, positions: Tensor) -> MovingDigits:
        """Return a split of the clips at these positions."""
        chosen = {name: getattr(self, name)[positions] for name in ("picks", "start", "velocity")}
        y = None if self.y is None else self.y[positions]
        return dataclasses.replace(self, **chosen, y=y)

    def binarize(self, kind: str, part: str) -> MovingDigits:
        """Refuse."""
        raise ConfigError("data.binarize is for images; video has all its levels")

    def corners(self, positions: Tensor) -> Tensor:
        """Return the upper left corners (b, k, t, 2) of the digits of clips (b,), in pixels."""
        room = float(self.side - self.pool.shape[1])
        way = places(self.start[positions], self.velocity[positions], self.times, room)
        return (way.transpose(2, 3) * _GRID).round() / _GRID

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return clips (b, 1, t, side, side), uint8; where digits overlap, the brighter counts."""
        corners, picks = self.corners(positions), self.picks[positions]
        layers = [
            draw(self.pool[picks[:, k]], corners[:, k], self.side) for k in range(picks.shape[1])
        ]
        x = torch.stack(layers).amax(0).round().to(torch.uint8)[:, None]
        return x, None if self.y is None else self.y[positions]


def _invent(part: str, mnist: DataSet, digits: int, side: int, config: DataConfig) -> MovingDigits:
    """Return the clips of a part; one digit makes the class, of two there is none."""
    rows = mnist.splits[part]
    pool = rows.x[:, 0]
    if side == SIDES[0]:
        pool = F.avg_pool2d(pool[:, None].float(), 2)[:, 0].round()
    n, source = COUNTS[part], generator("moving-digits", part, digits)
    picks = torch.randint(len(pool), (n, digits), generator=source)
    start = torch.rand(n, digits, 2, generator=source) * float(side - pool.shape[1])
    low, high = (share * side for share in SPEEDS)
    speed = low + (high - low) * torch.rand(n, digits, 1, generator=source)
    angle = torch.rand(n, digits, generator=source) * torch.pi * 2
    return MovingDigits(
        pool=pool,
        picks=picks,
        start=start,
        velocity=speed * torch.stack([angle.sin(), angle.cos()], 2),
        y=rows.y[picks[:, 0]] if digits == 1 else None,
        side=side,
        times=torch.arange(config.frames) * float(config.frame_step),
    )


def open_moving_digits(
    config: DataConfig, mnist: Callable[[], DataSet], *, digits: int = 1
) -> DataSet:
    """Return 10,000 training, 1,000 validation and 1,000 test clips of so many digits.

    mnist: opens the digits. The frame has 32 px, or the 64 of data.resize = 64. Raises ConfigError
    for options that don't fit, and what opening MNIST does.
    """
    refuse_options(config)
    name = "moving-digits" if digits == 1 else f"moving-digits-{digits}"
    side = config.resize or SIDES[0]
    if side not in SIDES:
        known = " or ".join(map(str, SIDES))
        raise ConfigError(f"data.resize = {side}, but {name} are drawn at {known} px")
    for option in ("crop", "channels"):
        if getattr(config, option) is not None:
            raise ConfigError(f"data.{option} does not go with {name}; leave it out")
    found = mnist()
    if found.spec.shape != (1, 28, 28):
        raise DataError(f"{name} needs MNIST's images of 28 px, not {found.spec}")
    parts = {part: _invent(part, found, digits, side, config) for part in COUNTS}
    codec = VideoCodec(channels=1, frames=config.frames, size=(side, side))
    classes = tuple(map(str, range(10))) if digits == 1 else ()
    steps = [f"{config.frames} frames of {side} px"]
    if config.frame_step > 1:
        steps.append(f"{config.frame_step} times as fast")
    notes = {"origin": "made up by poiesis of MNIST's digits", "seed": 0}
    return assemble(Images(name, parts, codec, classes, steps, notes=notes, rows="clips"), config)
