"""A classifier of noised data, trained beside the denoiser, that leads samples to a class.

By Bayes' rule ∇ log p(x_t | y) = ∇ log p(x_t) + ∇ log p(y | x_t) (arXiv 2105.05233, section 4), so
that a model which learned no classes can be asked for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, Loss, Optim, Phase, Schedule
from poiesis.models.diffusion.grids import make_network
from poiesis.nn.classifier import NoisedClassifier
from poiesis.nn.denoising_mlp import DenoisingMLP
from poiesis.sampling import counting
from poiesis.spec import Classes, Condition, Vector

__all__ = ["Classifying"]

_RATE, _DECAY = 3e-4, 0.05
"""Step size and weight decay of AdamW, those of the paper."""
_PURE = 100.0
"""Above this ratio of noise to signal, x_t passes for pure noise: a classifier's own error of it
would be blown up by σ²/α, so it is asked as if that were the ratio."""


class Classifying:
    """The part of a `DenoisingModel` that learns which class noised data are of."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of training."""

        classifier: bool = False
        """Train a classifier of noised data besides, which can lead samples to a class, also where
        the network itself learns none (conditional = false). It makes every step longer."""

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Options of sampling."""

        classifier_scale: float | None = None
        """Strength s with which the classifier leads to the class: 0 does not, 1 follows it, more
        exaggerates it; None is 1 where it alone learned the classes, else 0."""

        def __post_init__(self) -> None:
            check("classifier_scale", self.classifier_scale, low=0, high=1000)

    config: Any
    spec: Any
    condition: Any
    told: Any
    """What the denoising network is told: `condition`, or nothing where the classifier alone learns
    the classes."""
    classifier: nn.Module | None
    task: Any
    input_scale: Any
    network_level: Any
    draw_times: Any
    cleanest: Any
    level_of: Any
    _level: Any

    def learn_classes(self, condition: Condition | None) -> None:
        """Add a classifier of these classes, if there is to be one.

        Before, the condition is the denoiser's own. Raises ConfigError where there are no classes.
        """
        config, spec = self.config, self.spec
        self.told, self.classifier = self.condition, None
        if not config.classifier:
            return
        if not isinstance(condition, Classes) or self.task is not None:
            raise ConfigError(
                "classifier = True needs classes, and here are none to learn: give data that have "
                "them (--data.label), or leave it out"
            )
        self.condition = condition
        if isinstance(spec, Vector):
            self.classifier = DenoisingMLP(
                features=spec.features,
                width=config.channels,
                layers=config.blocks,
                dropout=config.dropout,
                outputs=condition.count,
            )
            return
        if config.network != "unet":
            raise ConfigError(
                f"classifier = True is half a U-Net and learns with one, not with network = "
                f"{config.network!r}: take unet, or leave it out"
            )
        network = make_network(config, spec, None)
        self.classifier = NoisedClassifier(network, condition.count, config.groups)

    def classifier_optimizers(self) -> Mapping[str, Optim]:
        """Return the classifier's AdamW, if there is one."""
        if self.classifier is None:
            return {}
        return {
            "classifier": Optim(
                kind="adamw",
                networks=("classifier",),
                lr=_RATE,
                weight_decay=_DECAY,
                schedule=Schedule(kind=self.config.decay, warmup=self.config.warmup),
                clip=self.config.clip,
            )
        }

    def classifier_phases(self) -> list[Phase]:
        """Return the phase in which it learns, if there is one: on the denoiser's batch."""
        if self.classifier is None:
            return []
        return [Phase(name="classifier", loss=self.classifier_loss, step=("classifier",))]

    def classifier_loss(self, batch: Batch, step: int) -> Loss:
        """Return -log p(class | x_t) at a random level, (b,), in nats."""
        t = self.draw_times(batch)
        logits = self.classify(self._noised(batch, t), t)
        right = (logits.argmax(1) == batch.condition).float()
        return _surprise(logits, batch), {"agreement": right}

    def classifier_values(self, batch: Batch, t: Tensor) -> dict[str, Tensor]:
        """Return what validation watches at levels t, each (b,)."""
        if self.classifier is None:
            return {}
        logits = self.classify(self._noised(batch, t), t)
        return {"class": _surprise(logits, batch)}

    def _noised(self, batch: Batch, t: Tensor) -> Tensor:
        alpha, sigma = self._level(t)
        return alpha * batch.x + sigma * batch.randn(*batch.x.shape[1:])

    def classify(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits (b, classes), float32, of data noised to levels t (b,)."""
        assert self.classifier is not None
        counting.asked(len(x_t))
        x_t = x_t.float() * self.input_scale(*self._level(t))
        return self.classifier(x_t, self.network_level(t)).float()

    # -- guidance -------------------------------------------------------------------------------

    def classifier_scale(self, options: Any) -> float:
        """Return the strength that options ask for; raises ConfigError without a classifier."""
        scale = options.classifier_scale
        if scale is None:
            scale = 1.0 if self.classifier is not None and self.told is None else 0.0
        if scale and self.classifier is None:
            raise ConfigError(
                f"classifier_scale = {scale:g}, but this model has no classifier; train one with "
                "--model.classifier true, or leave it out"
            )
        return scale

    def led(
        self, x0: Tensor, x_t: Tensor, t: Tensor, condition: Tensor | None, options: Any
    ) -> Tensor:
        """Return an estimate of x0 led to classes (b,): x0 + s σ²/α ∇ log p(class | x_t).

        That is what the noise's change by −s σ ∇ log p (arXiv 2105.05233, algorithm 2) makes of x0,
        and with any sampler and target the same. t: (b,), one level for all.
        """
        scale = self.classifier_scale(options)
        if not scale or condition is None:
            return x0
        t = t.clamp(min=self.cleanest)
        alpha, sigma = (float(value.flatten()[0]) for value in self._level(t[:1]))
        low, high = options.guidance_interval
        if not low <= sigma / (alpha + sigma) <= high:
            return x0
        if sigma > _PURE * alpha:
            spread = math.hypot(alpha, sigma)
            t = self.level_of(torch.tensor([_PURE], device=t.device))[0].expand(len(t))
            alpha, sigma = (float(value.flatten()[0]) for value in self._level(t[:1]))
            x_t = x_t * (math.hypot(alpha, sigma) / spread)
        with torch.enable_grad():
            x_t = x_t.detach().float().requires_grad_()
            log_p = self.classify(x_t, t).log_softmax(1).gather(1, condition[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), x_t)
        return x0 + scale * sigma**2 / alpha * gradient


def _surprise(logits: Tensor, batch: Batch) -> Tensor:
    """Return -log p(class) of each sample, (b,), in nats."""
    assert batch.condition is not None
    return F.cross_entropy(logits, batch.condition, reduction="none")
