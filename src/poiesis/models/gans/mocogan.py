"""MoCoGAN, motion and content decomposed: Tulyakov et al., arXiv:1707.04993.

Shape letters: b batch, t frames, c channels, s side, z latent dimensions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.config import check, check_each
from poiesis.errors import SpecError
from poiesis.models.base import Batch, preset
from poiesis.models.gans.adversarial import Adversarial, telling
from poiesis.models.gans.convolutional import (
    ConvDiscriminator,
    ConvGenerator,
    check_widths,
    doubling,
    full_size,
    initialise,
)
from poiesis.models.gans.padding import padded_size
from poiesis.nn.labels import LabelEmbedding
from poiesis.spec import Condition, Grid, Spec

__all__ = ["ClipDiscriminator", "MoCoGAN", "MoCoGenerator"]

_TIME = 4
"""Frames that a kernel spans, where there are as many."""


class MoCoGenerator(nn.Module):
    """Latent (b, content + motion + t motion) → clip (b, c, t, s, s) in [-1, 1].

    Its parts side by side: what is seen in all frames; where the motion starts; the noise that
    drives it on in each frame. A GRU makes the motion of these, and a generator of images a frame
    of content and motion (figure 2 of the paper).
    """

    def __init__(
        self, content: int, motion: int, widths: Sequence[int], spec: Grid, *, classes: int = 0
    ) -> None:
        super().__init__()
        self.frames = spec.size[0]
        self.parts = (content, motion, self.frames * motion)
        self.motion = nn.GRUCell(motion, motion)
        self.frame = ConvGenerator(content + motion, widths, _frame(spec), classes=classes)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Return clips; label: int64 (b,) or float (b, k), None without classes."""
        content, state, noise = z.split(self.parts, dim=1)
        states = []
        for drive in noise.unflatten(1, (self.frames, -1)).unbind(1):
            state = self.motion(drive, state)
            states.append(state)
        motion = torch.stack(states, 1)
        content = content[:, None].expand(-1, self.frames, -1)
        if label is not None:
            label = label.repeat_interleave(self.frames, 0)
        x = self.frame(torch.cat((content, motion.to(content.dtype)), 2).flatten(0, 1), label)
        return x.unflatten(0, (-1, self.frames)).transpose(1, 2)


class ClipDiscriminator(nn.Module):
    """Clip (b, c, t, s, s) → logits (b,); with ``classify=True`` also logits of classes (b, k).

    Convolutions over time and space, of which those in space halve the side as `ConvDiscriminator`
    does. Classes are projected (arXiv:1802.05637), or told by a second head (classify).
    """

    def __init__(
        self, widths: Sequence[int], spec: Grid, *, classes: int = 0, classify: bool = False
    ) -> None:
        super().__init__()
        back, left = widths[::-1], spec.size[0]
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise((spec.channels, *back)):
            time = min(_TIME, left)
            left -= time - 1
            whole = not layers and full_size(widths, _frame(spec))
            space, stride = (3, 1) if whole else (4, 2)
            kernel, steps, pads = (time, space, space), (1, stride, stride), (0, 1, 1)
            normed = bool(layers)
            layers.append(nn.Conv3d(before, width, kernel, steps, pads, bias=not normed))
            layers += [nn.BatchNorm3d(width)] if normed else []
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv3d(back[-1], 1, (min(_TIME, left), 4, 4))
        self.label = LabelEmbedding(classes, back[-1]) if classes and not classify else None
        self.classifier = nn.Linear(back[-1], classes) if classify else None

    def forward(self, x: Tensor, label: Tensor | None, classify: bool = False) -> Any:
        """Return logits, or both kinds of them."""
        h = self.body(x)
        logit = self.head(h).flatten(1).mean(1)  # over what is left of time
        if self.label is not None:
            logit = logit + (self.label(label) * h.mean(2).sum((2, 3))).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h.mean((2, 3, 4)))
        return logit


class _Discriminator(nn.Module):
    """Logits (b, 2) of a clip: of one of its frames, and of the whole."""

    def __init__(self, widths: Sequence[int], spec: Grid, *, classes: int, classify: bool) -> None:
        super().__init__()
        told = 0 if classify else classes
        self.frame = ConvDiscriminator(widths, _frame(spec), classes=told)
        self.clip = ClipDiscriminator(widths, spec, classes=classes, classify=classify)

    def forward(
        self, x: Tensor, label: Tensor | None, frame: Tensor, classify: bool = False
    ) -> Any:
        """Return logits, with classify also those of the classes. frame: which one, int64 (b,)."""
        rows = torch.arange(len(x), device=x.device)
        seen = self.frame(x[rows, :, frame], label)
        clip = self.clip(x, label, classify)
        if classify:
            return torch.stack((seen, clip[0]), 1), clip[1]
        return torch.stack((seen, clip), 1)


class MoCoGAN(Adversarial):
    """GAN of video whose latent has a part for what is seen and a part for how it moves.

    One discriminator judges single frames, drawn at random, and another one whole clips; the
    generator plays against both.

    Good at: short clips of one thing that moves, in one pass; the same thing in other motions, and
    other things in the same motion.

    Not good at: scenes that change, long clips, likelihoods; covering rare modes.

    Cost: as a DCGAN of as many images as there are frames, and convolutions over time.

    Paper: Tulyakov, Liu, Yang & Kautz, MoCoGAN: Decomposing Motion and Content for Video
    Generation, arXiv:1707.04993.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of MoCoGAN."""

        latent_dim: int = 50
        """Dimensions of the content: normal noise that is the same in all frames."""
        motion_dim: int = 10
        """Dimensions of the motion, and of the noise that drives it in each frame."""
        widths: tuple[int, ...] = (64, 32, 16)
        """Channels of the generator at 4 px, 8 px, …; both discriminators mirror them. They end at
        half the frame's size, or at its full size."""
        batch_size: int = 32

        def __post_init__(self) -> None:
            super().__post_init__()
            check("motion_dim", self.motion_dim, low=1, high=4096)
            check_each("widths", self.widths, low=1, high=8192, most=7, example="64,32,16")
            check("batch_size", self.batch_size, low=2)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """Narrow enough for a CPU, with small batches and averaged weights.

        The generator learns five times as fast as the discriminators, which win at once otherwise.
        """
        widths = doubling(max(16, cls._size(spec)), last=16, most=128)
        if cls._size(spec) == 8:
            widths = (32, 16)  # ends at full size
        return cls.Config(
            widths=widths, batch_size=16, generator_lr=1e-3, discriminator_lr=2e-4, ema=0.99
        )

    @preset
    @classmethod
    def paper(cls, spec: Spec) -> Any:
        """The paper's networks at 64 px (512 channels down to 64) and its settings."""
        return cls.Config(widths=doubling(cls._size(spec), last=64, most=512))

    # -- data and networks -----------------------------------------------------------------------

    @classmethod
    def _size(cls, spec: Spec) -> int:
        if not isinstance(spec, Grid) or len(spec.size) != 3 or spec.channels not in (1, 3):
            raise SpecError(f"a {cls.__name__} learns video, grey or RGB, not {spec}")
        return padded_size(_frame(spec), f"a {cls.__name__}")

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return clips in [-1, 1], frames padded to squares of a power of two of at least 8."""
        size = cls._size(spec)
        check_widths(config.widths, size)
        assert isinstance(spec, Grid)
        return dataclasses.replace(spec, size=(spec.size[0], size, size), domain="signed")

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        assert isinstance(spec, Grid)
        classes = self.condition.count if self.condition else 0
        self.generator = MoCoGenerator(
            config.latent_dim, config.motion_dim, config.widths, spec, classes=classes
        )
        self.discriminator = _Discriminator(
            config.widths, spec, classes=classes, classify=bool(config.auxiliary_weight)
        )
        self.apply(initialise)

    @property
    def latent_size(self) -> int:
        """Numbers of a latent: content, start of the motion, noise of each frame."""
        return sum(self.generator.parts)  # type: ignore[arg-type]

    # -- what differs from the family ------------------------------------------------------------

    def _judge(self, x: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor | float]:
        x, weight = self.augment(x, batch, step), self.config.auxiliary_weight
        frame = batch.randint(self.spec.size[0])
        if not weight:
            return self.discriminator(x, batch.condition, frame), 0.0
        score, classes = self.discriminator(x, batch.condition, frame, classify=True)
        assert batch.condition is not None
        return score, weight * telling(classes.float(), batch.condition)

    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the logits (b,) of the discriminator of clips, which sees all the frames."""
        return self.discriminator.clip(x, self._asked(condition)).float()  # type: ignore[operator]


def _frame(spec: Grid) -> Grid:
    """Return the spec of one frame of a clip."""
    return dataclasses.replace(spec, size=spec.size[1:])
