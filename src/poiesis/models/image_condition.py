"""Pictures as a condition: images learned given a smaller, grey, holed or otherwise other one.

A condition is (b, c' + 1, h, w), float32, in the view: a picture and, as its last channel, where it
says something (1) or nothing (0, and the picture is 0 there). So nothing but zeros is "no picture",
which is what guidance needs, and holes are said in the same way. Shape letters: b batch, c channels
of the images, c' of the picture, h height, w width, f factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import GenerativeModel
from poiesis.rng import Draws, Noise
from poiesis.spec import Condition, Grid, Picture, Spec

__all__ = ["Colourise", "FromPictures", "Holes", "Pairs", "Task", "Upscale", "fitting", "task_of"]

Task = Literal["none", "upscale-2", "upscale-4", "colourise", "inpaint"]
"""What pictures are made of the data themselves."""

EXAMPLES = 16
"""Held-out rows that a model keeps, to show what it can do."""
_NOISE = 0.1
"""Most noise, as a standard deviation in [-1, 1], on small pictures in training, so that those that
were not made by averaging do as well (arXiv 2106.15282, section 4.2)."""
_ROUNDS = 4
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as PIL's."""
_HOLE = (0.25, 1.0)
"""Sides of a rectangular hole, in shares of the picture's."""
_CORNERS = 5
"""Of a brush stroke."""
_BRUSH = (0.04, 0.12)
"""Its half width, in shares of the picture's shorter side."""

Drawer = Draws | Noise


class Pairs:
    """Pictures that the data bring along, of the size of the images."""

    plainly = "the input"
    """What `plain` is, in words."""

    def __init__(self, spec: Grid, channels: int) -> None:
        self.spec = spec
        self.channels = channels

    @property
    def source(self) -> Grid | None:
        """The pictures that users give; None where pictures alone do not say all."""
        return Grid(
            channels=self.channels, size=self.spec.size, domain="signed", levels=self.spec.levels
        )

    @property
    def condition(self) -> Picture:
        """The spec of the condition."""
        return Picture(channels=self.channels, size=self.spec.size)

    def given(self, x: Tensor, y: Tensor | None, noise: Drawer, training: bool) -> Tensor:
        """Return pictures (b, *source.shape) of images x (b, c, h, w), of which the data say y."""
        assert y is not None, "pairs come from the data"
        return y

    def lift(self, source: Tensor) -> Tensor:
        """Return the conditions of pictures (b, *source.shape)."""
        return torch.cat([source, torch.ones_like(source[:, :1])], 1)

    def seen(self, condition: Tensor) -> Tensor:
        """Return what the network is shown, (b, c' + 1, h, w)."""
        return condition

    def picture(self, condition: Tensor) -> Tensor:
        """Return the pictures as images of the view, (b, c, h, w), to look at."""
        return condition[:, :-1]

    def plain(self, condition: Tensor) -> Tensor:
        """Return what one would make of the pictures without a model, (b, c, h, w)."""
        return self.picture(condition)

    def agree(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the images nearest to x (b, c, h, w) that are all that the pictures say."""
        return x


class Upscale(Pairs):
    """Images averaged over squares of f x f pixels (arXiv 2104.07636)."""

    plainly = "bicubic"

    def __init__(self, spec: Grid, factor: int) -> None:
        super().__init__(spec, spec.channels)
        self.factor = factor

    @property
    def source(self) -> Grid:
        """Pictures f times as small."""
        size = tuple(side // self.factor for side in self.spec.size)
        return Grid(channels=self.channels, size=size, domain="signed", levels=self.spec.levels)

    def given(self, x: Tensor, y: Tensor | None, noise: Drawer, training: bool) -> Tensor:
        """Return averages, in training with some noise."""
        small = _rounded(F.avg_pool2d(x, self.factor), self.spec.levels)
        if training:
            small = small + _NOISE * noise.rand(1, 1, 1) * noise.randn(*small.shape[1:])
        return small

    def lift(self, source: Tensor) -> Tensor:
        """Return conditions in which each pixel is repeated."""
        return super().lift(self._repeated(source))

    def seen(self, condition: Tensor) -> Tensor:
        """Return the pictures enlarged smoothly."""
        small = F.avg_pool2d(condition[:, :-1], self.factor)
        # With antialias, which has nothing to smooth here, torch's kernel is that of others.
        large = F.interpolate(small, scale_factor=self.factor, mode="bicubic", antialias=True)
        return torch.cat([large, condition[:, -1:]], 1)

    def plain(self, condition: Tensor) -> Tensor:
        """Return the same, in range."""
        return self.seen(condition)[:, :-1].clamp(-1, 1)

    def agree(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x with the averages of the pictures."""
        missing = F.avg_pool2d(condition[:, :-1] - x, self.factor)
        return x + condition[:, -1:] * self._repeated(missing)

    def _repeated(self, small: Tensor) -> Tensor:
        return F.interpolate(small, scale_factor=self.factor, mode="nearest")


class Colourise(Pairs):
    """Images without their colours."""

    plainly = "gray"

    def __init__(self, spec: Grid) -> None:
        super().__init__(spec, 1)

    def given(self, x: Tensor, y: Tensor | None, noise: Drawer, training: bool) -> Tensor:
        """Return grey versions."""
        return _rounded(self._luma(x), self.spec.levels)

    def picture(self, condition: Tensor) -> Tensor:
        """Return grey images."""
        return condition[:, :1].expand(-1, self.spec.channels, -1, -1)

    def agree(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x with the brightness of the pictures."""
        weights = x.new_tensor(_LUMA).view(1, -1, 1, 1)
        missing = condition[:, :1] - self._luma(x)
        return x + condition[:, -1:] * missing * weights / weights.square().sum()

    @staticmethod
    def _luma(x: Tensor) -> Tensor:
        return (x * x.new_tensor(_LUMA).view(1, -1, 1, 1)).sum(1, keepdim=True)


class Holes(Pairs):
    """Images with parts missing."""

    plainly = "the mean of what is known"

    def __init__(self, spec: Grid) -> None:
        super().__init__(spec, spec.channels)

    @property
    def source(self) -> None:
        """None: where the hole is must be said besides; see the capability `inpaint`."""
        return None

    def given(self, x: Tensor, y: Tensor | None, noise: Drawer, training: bool) -> Tensor:
        """Return conditions with a hole each: a rectangle, or the stroke of a brush."""
        return self.known(x, 1 - _holes(noise, *self.spec.size).to(x))

    def lift(self, source: Tensor) -> Tensor:
        """Return the same: what `given` returned are conditions."""
        return source

    def known(self, x: Tensor, known: Tensor) -> Tensor:
        """Return conditions of images x where known (broadcastable to (b, 1, h, w)) is 1."""
        known = known.to(x).expand(len(x), 1, *x.shape[2:])
        return torch.cat([x * known, known], 1)

    def plain(self, condition: Tensor) -> Tensor:
        """Return images whose holes have the mean colour of the rest."""
        image, known = condition[:, :-1], condition[:, -1:]
        mean = image.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
        return torch.where(known > 0, image, mean)

    def agree(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x with what is known."""
        return torch.where(condition[:, -1:] > 0, condition[:, :-1], x)


def _rounded(x: Tensor, levels: int) -> Tensor:
    """Return values in [-1, 1] as files hold them."""
    top = (levels - 1) / 2
    return ((x + 1) * top).round() / top - 1


def _holes(noise: Drawer, height: int, width: int) -> Tensor:
    """Return holes (b, 1, h, w), 1 in them: half of them rectangles, half of them strokes."""
    device = noise.device
    y = torch.arange(height, device=device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(width, device=device).view(1, 1, 1, -1) + 0.5
    sides = _HOLE[0] + (_HOLE[1] - _HOLE[0]) * noise.rand(2, 1, 1)
    start = noise.rand(2, 1, 1) * (1 - sides)
    inside = [
        (at >= start[:, i : i + 1] * side) & (at <= (start + sides)[:, i : i + 1] * side)
        for i, (at, side) in enumerate(((y, height), (x, width)))
    ]
    corners = noise.rand(_CORNERS, 2) * torch.tensor([height, width], device=device)
    thick = _BRUSH[0] + (_BRUSH[1] - _BRUSH[0]) * noise.rand(1, 1, 1)
    a, b = (part[:, :, :, None, None] for part in (corners[:, :-1], corners[:, 1:]))
    # Distance of each pixel from each piece of the stroke.
    away_y, away_x = y - a[:, :, 0], x - a[:, :, 1]
    along_y, along_x = (b - a).unbind(2)
    share = away_y * along_y + away_x * along_x
    share = (share / (along_y.square() + along_x.square()).clamp(min=1e-6)).clamp(0, 1)
    distance = torch.hypot(away_y - share * along_y, away_x - share * along_x)
    near = distance.amin(1, keepdim=True) <= thick * min(height, width)
    return torch.where(noise.rand(1, 1, 1) < 0.5, inside[0] & inside[1], near).float()


def fitting(task: Task, spec: Spec, view: Spec) -> Spec:
    """Return the view of native data `spec`; raises SpecError where it does not suit the task."""
    if task == "none":
        return view
    if not isinstance(view, Grid) or len(view.size) != 2:
        raise SpecError(f"task {task!r} is for images; this data is a {spec}")
    if task == "colourise" and view.channels != len(_LUMA):
        raise SpecError(f"task 'colourise' needs images of 3 channels, not {view.channels}")
    if task.startswith("upscale"):
        assert isinstance(spec, Grid)
        factor = int(task.rpartition("-")[2])
        for side, whole in zip(spec.size, view.size, strict=True):
            if side % factor or whole % factor or (whole - side) // 2 % factor:
                raise SpecError(
                    f"task {task!r} needs sides, padded or not, in steps of {factor} px, not {side}"
                    f" in {whole}; try --data.resize {max(factor, side // 8 * 8)}"
                )
    return view


def task_of(task: Task, spec: Spec, condition: Condition | None) -> Pairs | None:
    """Return what makes the conditions of images of a view, None where no pictures are learned.

    Raises ConfigError for a task on what are no images.
    """
    if task != "none":
        if not isinstance(spec, Grid) or spec.domain != "signed":
            raise ConfigError(f"task = {task!r} is for images, not for their latents; leave it out")
        if task == "colourise":
            return Colourise(spec)
        if task == "inpaint":
            return Holes(spec)
        return Upscale(spec, int(task.rpartition("-")[2]))
    if isinstance(condition, Picture):
        assert isinstance(spec, Grid)
        return Pairs(spec, condition.channels)
    return None


class FromPictures(GenerativeModel):
    """Base of all models that may learn images given pictures: pairs of the data, or made of it."""

    reads_pictures = True
    task: Pairs | None = None
    """What makes the conditions, None where they are no pictures."""

    def take_up(self, task: Pairs | None) -> None:
        """Learn images given pictures from now on, if that is a task."""
        self.task = task
        if task is None:
            return
        self.condition = task.condition
        # In the checkpoint: a run alone then shows what it can do.
        for name, channels in (("images", self.spec.channels), ("pictures", task.channels)):
            if name == "images" or type(task) is Pairs:
                empty = torch.zeros(EXAMPLES, channels, *self.spec.size, dtype=torch.uint8)
                self.register_buffer(f"example_{name}", empty)

    def condition_on(
        self, x: Tensor, y: Tensor | None, noise: Drawer, *, training: bool = False
    ) -> Tensor | None:
        """Return the conditions of images: pictures of the data or made of x, or what y says."""
        if self.task is None:
            return super().condition_on(x, y, noise, training=training)
        return self.task.lift(self.task.given(x, y, noise, training))

    def keep_examples(self, held_out: Callable[[int], tuple[Tensor, Tensor | None]]) -> None:
        """Keep some held-out images, and their pictures, as levels."""
        if self.task is None:
            return
        x, y = held_out(EXAMPLES)
        rows = torch.arange(EXAMPLES) % len(x)
        for name, values in (("example_images", x), ("example_pictures", y)):
            if hasattr(self, name) and values is not None:
                levels = (values[rows] + 1) * (self.spec.levels - 1) / 2
                getattr(self, name).copy_(levels.round())

    def examples(self) -> tuple[Tensor, Tensor]:
        """Return the kept images (n, c, h, w) in the view and their conditions (n, …)."""
        assert self.task is not None
        images, pictures = (
            None if kept is None else kept.float() * 2 / (self.spec.levels - 1) - 1
            for kept in (getattr(self, f"example_{n}", None) for n in ("images", "pictures"))
        )
        assert images is not None
        noise = Noise(0, range(len(images)), device=images.device)
        return images, self.task.lift(self.task.given(images, pictures, noise, False))

    def default_condition(self, first: int, n: int) -> Tensor | None:
        """Return conditions for samples first…first+n-1; of pictures, the kept ones in turn."""
        if self.task is None:
            return super().default_condition(first, n)
        conditions = self.examples()[1]
        return conditions[torch.arange(first, first + n) % len(conditions)]

    # -- the capability `translate` --------------------------------------------------------------

    @property
    def source(self) -> Grid | None:
        """The view of the pictures that `translate` takes; None for a model that takes none."""
        return None if self.task is None else self.task.source

    def given(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the pictures (b, *source.shape) of images x, of which the data say y."""
        assert self.task is not None
        return self.task.given(x, y, Noise(0, range(len(x)), device=x.device), False)

    def translate(self, x: Tensor, noise: Noise, options: Any = None) -> Tensor:
        """Return images (b, *spec.shape) of pictures x (b, *source.shape)."""
        assert self.task is not None
        options = self.Sampling() if options is None else options
        return self.draw(noise, self.task.lift(x), options)

    def plain(self, x: Tensor) -> Tensor:
        """Return what one would make of pictures x (b, *source.shape) without a model."""
        assert self.task is not None
        return self.task.plain(self.task.lift(x))

    def agreed(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return images near x (b, *spec.shape), in [-1, 1], that are all that a condition says.

        Projections in turn on the two convex sets, in both of which the real images lie: each comes
        nearer to these.
        """
        if self.task is None or condition is None:
            return x
        for _ in range(_ROUNDS):
            x = self.task.agree(x, condition).clamp(-1, 1)
        return x
