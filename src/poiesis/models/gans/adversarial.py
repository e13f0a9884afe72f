"""The family base of GANs: a generator and a discriminator, and how they are trained.

A model of this family gives the two networks, a view of the data and presets. One training step is
`discriminator_loss`, then `generator_loss`; losses are in `losses.py`, penalties in `penalties.py`.
Shape letters: b batch, z latent dimensions, k classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, GenerativeModel, Loss, Optim, Phase, Schedule, Stage
from poiesis.models.gans import losses
from poiesis.models.gans.augmentation import (
    Adaptation,
    Source,
    Transform,
    ada,
    diffaugment,
    noised,
    same,
)
from poiesis.models.gans.penalties import (
    clip_,
    gradient_penalty,
    orthogonal,
    squared_gradient,
    twice_differentiable,
)
from poiesis.rng import Noise
from poiesis.spec import Condition, Grid, Spec

__all__ = ["Adversarial", "telling"]


class Adversarial(GenerativeModel):
    """Base of the models that learn by a game between a generator and a discriminator.

    A subclass sets, in its `__init__`, `generator`, called as generator(z, label) → data (b,
    *spec.shape) in the view's range, and `discriminator`, called as discriminator(x, label) →
    logits (b,), or (b, k) of k discriminators whose losses add up. z is (b, z); label is int64
    (b,), float (b, k) for attributes and for mixtures of classes, or None. A discriminator that can
    classify also takes ``classify=True`` and then returns (logits, logits of the classes (b, k)).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options that all GANs have."""

        latent_dim: int = 100
        """Dimensions of the normal noise that the generator turns into a sample."""
        conditional: bool = False
        """Generate by class or attributes; needs data with classes, or with data.attributes."""
        loss: str = "non-saturating"
        """minimax, non-saturating, least-squares, wasserstein, hinge or relativistic; or the import
        path package.module:NAME of your own AdversarialLoss."""
        label_smoothing: float = 0.0
        """Share of the real samples that the discriminator is told are fake (one-sided)."""
        instance_noise: float = 0.0
        """Standard deviation of noise on all that the discriminator sees, at the first step."""
        instance_noise_steps: int = 2000
        """Steps in which the instance noise sinks to zero."""
        augment: Literal["none", "diffaugment", "ada"] = "none"
        """Change images, real and fake ones alike, before the discriminator sees them: for data
        sets of a few thousand. diffaugment: colour, place and a hole in each (arXiv:2006.10738);
        ada: more kinds, as often as overfitting asks for (arXiv:2006.06676)."""
        augment_target: float = 0.6
        """What ada holds the mean sign of the discriminator on real images at (0: it can't tell
        them, 1: it knows each); above it, augmentation grows."""
        augment_images: int = 500_000
        """Images in which ada can go from none to full augmentation."""
        penalty: Literal["none", "clip", "gradient", "r1", "r2", "zero-centred"] = "none"
        """On the discriminator. clip: bounded weights; gradient: (‖∇‖ - 1)² between real and fake
        samples; r1, r2: ‖∇‖²/2 at real, at fake ones; zero-centred: both of these."""
        penalty_weight: float = 10.0
        """Factor of the gradient penalties."""
        penalty_every: int = 1
        """Steps from one gradient penalty to the next; above 1 it has a phase of its own, and as a
        further factor the discriminator steps it stands for."""
        clip: float = 0.01
        """Largest absolute weight of the discriminator (penalty clip)."""
        orthogonal: float = 0.0
        """Weight of the penalty on the products of different rows of the generator's weights."""
        auxiliary_weight: float = 0.0
        """Weight of a classifier's cross-entropy on real and fake (AC-GAN, arXiv:1610.09585); above
        0 the discriminator is not told the class."""
        critic_steps: int = 1
        """Discriminator steps to one of the generator, each on a fresh batch."""
        optimizer: Literal["adam", "rmsprop"] = "adam"
        """Optimizer of both networks."""
        generator_lr: float = 2e-4
        """Learning rate of the generator."""
        discriminator_lr: float = 2e-4
        """Learning rate of the discriminator."""
        beta1: float = 0.5
        """First-moment decay of Adam."""
        beta2: float = 0.999
        """Second-moment decay of Adam or RMSprop."""
        decay: bool = False
        """Let both learning rates sink linearly to zero over the training."""
        batch_size: int = 64
        """Samples per step."""
        ema: float = 0.0
        """Decay per step of the generator's averaged weights, with which it samples; 0 is none."""

        def __post_init__(self) -> None:
            check("latent_dim", self.latent_dim, low=1, high=65536)
            losses.check_name(self.loss)
            check("label_smoothing", self.label_smoothing, low=0, high=0.5)
            if self.label_smoothing and self.loss == "relativistic":
                raise ConfigError(
                    "label_smoothing needs a loss of single samples, which relativistic is not"
                )
            check("instance_noise", self.instance_noise, low=0, high=10)
            check("instance_noise_steps", self.instance_noise_steps, low=1)
            check("augment_target", self.augment_target, low=-1, high=1)
            check("augment_images", self.augment_images, low=1)
            check("penalty_weight", self.penalty_weight, low=0)
            check("penalty_every", self.penalty_every, low=1)
            check("clip", self.clip, low=0, open_low=True)
            check("orthogonal", self.orthogonal, low=0)
            check("auxiliary_weight", self.auxiliary_weight, low=0)
            if self.auxiliary_weight and not self.conditional:
                raise ConfigError("auxiliary_weight needs classes; set conditional = True")
            check("critic_steps", self.critic_steps, low=1, high=1000)
            check("generator_lr", self.generator_lr, low=0, high=1, open_low=True)
            check("discriminator_lr", self.discriminator_lr, low=0, high=1, open_low=True)
            check("beta1", self.beta1, low=0, high=0.999)
            check("beta2", self.beta2, low=0, high=0.99999)
            check("batch_size", self.batch_size, low=1)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options that all GANs have."""

        temperature: float = 1.0
        """Standard deviation of the noise; below 1: fewer odd samples, less variety."""
        truncation: float | None = None
        """Largest absolute value of the noise before that factor: its normal distribution is cut
        off there (arXiv:1809.11096); none: not at all."""
        candidates: int = 1
        """Samples made for each one kept, which the discriminator chooses: at random in proportion
        to how real each looks by a loss that estimates it, else the best."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)
            check("truncation", self.truncation, low=0, high=100, open_low=True)
            check("candidates", self.candidates, low=1, high=10_000)

    mixes_classes = True
    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        if config.conditional and condition is None:
            raise ConfigError("conditional = True needs data with classes; set it to False")
        super().__init__(config, spec, condition if config.conditional else None)
        image = isinstance(spec, Grid) and len(spec.size) == 2
        if config.augment != "none" and not image:
            raise ConfigError(f"augment = {config.augment} changes images, not {spec}; set it none")
        self.adaptation = None
        if config.augment == "ada":
            self.adaptation = Adaptation(target=config.augment_target, images=config.augment_images)

    @property
    def latent_size(self) -> int:
        """Numbers that a sample is made of."""
        return self.config.latent_dim

    @functools.cached_property
    def adversarial(self) -> losses.AdversarialLoss:
        """The loss that the configuration names; imported where it is needed, in training."""
        return losses.resolve(self.config.loss)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one optimizer for each network."""
        c = self.config
        rates = {"discriminator": c.discriminator_lr, "generator": c.generator_lr}
        return {
            name: Optim(
                kind=c.optimizer,
                networks=(name,),
                lr=lr,
                betas=(c.beta1, c.beta2),
                schedule=Schedule(kind="linear" if c.decay else "constant"),
            )
            for name, lr in rates.items()
        }

    def stages(self) -> Sequence[Stage]:
        """Return one stage: discriminator steps, a lazy penalty if it is due, a generator step."""
        c, own, paired = self.config, ("discriminator",), self.adversarial.paired
        if c.label_smoothing and paired:
            raise ConfigError(f"label_smoothing needs a loss of single samples, not {c.loss}")
        phases = [
            Phase(
                name="discriminator", loss=self.discriminator_loss, step=own, repeat=c.critic_steps
            )
        ]
        if self._has_gradient_penalty and c.penalty_every > 1:
            phases.append(
                Phase(name="penalty", loss=self.penalty_loss, step=own, every=c.penalty_every)
            )
        phases.append(Phase(name="generator", loss=self.generator_loss, step=("generator",)))
        return [Stage(phases=tuple(phases), batch_size=c.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the generator."""
        return {"generator": self.config.ema}

    def after_step(self, phase: Phase, step: int) -> None:
        """Clip the discriminator's weights, where that is the penalty; adapt the augmentation."""
        if self.config.penalty == "clip" and "discriminator" in phase.step:
            clip_(self.discriminator.parameters(), self.config.clip)
        if self.adaptation is not None and phase.name == "generator":
            self.adaptation.after_batch(step)

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the discriminator's loss on a real and a fake sample (b,), with penalties.

        Real and fake go through it apart: they are separate batches to a batch normalisation.
        """
        c = self.config
        with torch.no_grad():
            fake = self._fake(batch)
        penalised = self._has_gradient_penalty and c.penalty_every == 1
        real, fake = self._watched(batch.x, fake) if penalised else (batch.x, fake)
        with twice_differentiable() if real.requires_grad or fake.requires_grad else nullcontext():
            real_score, real_cost = self._judge(real, batch, step)
            fake_score, fake_cost = self._judge(fake, batch, step)
        values = self._game(real_score, fake_score) + real_cost + fake_cost
        logs = self._note(real_score.detach(), fake_score.detach())
        if penalised:
            judged = ((real_score, real), (fake_score, fake))
            penalty = self._penalty(judged, real, fake, batch, step)
            logs["penalty"] = penalty.detach()
            values = values + penalty
        return values, logs

    def generator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the generator's loss on a fake sample (b,)."""
        c, loss = self.config, self.adversarial
        fake_score, cost = self._judge(self._fake(batch), batch, step)
        real_score = self._judge(batch.x, batch, step)[0] if loss.paired else None
        values = _added(loss.generator(fake_score, real_score)) + cost
        if c.orthogonal:
            values = values + c.orthogonal * orthogonal(_weights(self.generator))
        return values, {}

    def penalty_loss(self, batch: Batch, step: int) -> Loss:
        """Return the gradient penalty (b,), times the discriminator steps it stands for."""
        with torch.no_grad():
            fake = self._fake(batch)
        real, fake = self._watched(batch.x, fake)
        with twice_differentiable():
            judged = [(self._judge(x, batch, step)[0], x) for x in (real, fake) if x.requires_grad]
        penalty = self._penalty(judged, real, fake, batch, step)
        return self.config.penalty_every * self.config.critic_steps * penalty, {}

    def augment(self, x: Tensor, batch: Batch, step: int) -> Tensor:
        """Return what the discriminator gets to see, in training, of real or fake x."""
        return self.augmentation(x.shape, batch, step)(x)

    def augmentation(self, shape: Sequence[int], draws: Source, step: int) -> Transform:
        """Draw how data of a shape (b, …) is changed before the discriminator sees it."""
        c = self.config
        change: Transform = same
        if c.augment == "diffaugment":
            change = diffaugment(shape, draws)
        elif c.augment == "ada":
            change = ada(shape, self.augment_chance(), draws, **self.augment_factors)
        sigma = c.instance_noise * (1 - step / c.instance_noise_steps)
        return noised(change, sigma * draws.randn(*shape[1:])) if sigma > 0 else change

    augment_factors: ClassVar[Mapping[str, float]] = {}
    """By what ada's probability is multiplied for some kinds of changes."""

    def augment_chance(self) -> float:
        """Return the probability of each of ada's changes at this step."""
        assert self.adaptation is not None
        return float(self.adaptation.p)

    def penalty_weight(self) -> float:
        """Return the factor of the gradient penalty at this step."""
        return self.config.penalty_weight

    def _fake(self, batch: Batch) -> Tensor:
        return self.generator(batch.randn(self.latent_size), batch.condition)

    def _judge(self, x: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor | float]:
        """Return the logits of x (b,) and the weighted cost of telling its class, (b,) or 0."""
        x, weight = self.augment(x, batch, step), self.config.auxiliary_weight
        if not weight:
            return self.discriminator(x, batch.condition), 0.0
        score, classes = self.discriminator(x, batch.condition, classify=True)
        assert batch.condition is not None
        return score, weight * telling(classes.float(), batch.condition)

    def _game(self, real: Tensor | None, fake: Tensor | None) -> Tensor:
        """Return the discriminator's loss on logits (b,); None leaves a term out."""
        loss, share = self.adversarial, self.config.label_smoothing
        values = loss.discriminator(real, fake)
        if share and real is not None:
            # The expected loss if this share of the real samples is labelled as fake.
            turned = loss.discriminator(None, real) - loss.discriminator(real, None)
            values = values + share * turned
        return _added(values)

    @property
    def _has_gradient_penalty(self) -> bool:
        return self.config.penalty not in ("none", "clip")

    def _watched(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, recording what follows from them where the penalty is on its gradient."""
        if self.config.penalty in ("r1", "zero-centred"):
            real = real.detach().requires_grad_()
        if self.config.penalty in ("r2", "zero-centred"):
            fake = fake.float().requires_grad_()
        return real, fake

    def _penalty(
        self,
        judged: Iterable[tuple[Tensor, Tensor]],
        real: Tensor,
        fake: Tensor,
        batch: Batch,
        step: int,
    ) -> Tensor:
        """Return the weighted gradient penalty (b,). judged: pairs of logits and data."""
        weight = self.penalty_weight()
        if self.config.penalty == "gradient":
            return weight * gradient_penalty(
                lambda x: self._judge(x, batch, step)[0], real, fake, batch.rand()
            )
        squares = [squared_gradient(score, x) for score, x in judged if x.requires_grad]
        return weight / 2 * torch.stack(squares).sum(0)

    def _note(self, real: Tensor | None, fake: Tensor | None) -> dict[str, Tensor | float]:
        """Take note of logits (b,) for the adaptation of the augmentation.

        Returns what to log of them: means, shares told rightly, their distance.
        """
        logs: dict[str, Tensor | float] = {}
        boundary = self.adversarial.boundary
        if self.adaptation is not None and real is not None:
            line = boundary
            if line is None:
                # Without a line of its own, the loss has it between the means of real and fake.
                assert fake is not None
                line = (real.float().mean() + fake.float().mean()) / 2
            self.adaptation.note(real - line)
            logs |= {"augment": self.augment_chance(), "r_t": self.adaptation.r_t.clone()}
        for name, score in (("real", real), ("fake", fake)):
            if score is not None:
                logs[f"{name}_score"] = _mean(score)
                if boundary is not None:
                    told = score > boundary if name == "real" else score <= boundary
                    logs[f"{name}_accuracy"] = _mean(told.float())
        if self.config.loss == "wasserstein" and real is not None and fake is not None:
            # Where the critic is at its optimum, the distance times its Lipschitz constant.
            logs["earth_mover"] = _mean(real.float() - fake.float())
        return logs

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Generate from normal noise, (n, *spec.shape). condition: classes (n,), or weights (n, k).

        Of several candidates, one is drawn with probabilities in proportion to exp(logit). Where
        logits are log-ratios of densities, that is sampling-importance resampling, which turns the
        generator's distribution into the data's as far as the discriminator knows both; unlike
        discriminator rejection sampling (arXiv:1810.06758) it takes as long for every sample.
        """
        x = self.generator(self._latent(noise, options), condition).float()
        if options.candidates == 1:
            return x
        best = self._choice(noise, x, condition)
        for _ in range(options.candidates - 1):
            other = self.generator(self._latent(noise, options), condition).float()
            score = self._choice(noise, other, condition)
            better = score > best
            x = torch.where(better.view(-1, *[1] * (x.dim() - 1)), other, x)
            best = torch.where(better, score, best)
        return x

    def _latent(self, noise: Noise, options: Any) -> Tensor:
        if options.truncation is None:
            z = self.draw_latent(noise)
        else:
            below = torch.special.ndtr(torch.tensor(-options.truncation, dtype=torch.float64))
            share = below + (1 - 2 * below) * noise.rand(self.latent_size).double()
            z = torch.special.ndtri(share).float()
        return z * options.temperature

    def _choice(self, noise: Noise, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return the logits (n,), with Gumbel noise where the largest is to be a fair draw."""
        logit = self.discriminate(x, condition)
        if self.adversarial.log_ratio:
            logit = logit - noise.rand().clamp(min=1e-30).log().neg().log()
        return logit

    def draw_latent(self, noise: Noise) -> Tensor:
        """Return standard normal z (n, z)."""
        return noise.randn(self.latent_size)

    @torch.no_grad()
    def decode(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the sample in the view of noise z (b, z)."""
        return self.generator(latent, self._asked(condition)).float()

    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits (b,), higher is more real."""
        return self.discriminator(x, self._asked(condition)).float()

    def _asked(self, condition: Tensor | None) -> Tensor | None:
        if self.condition is not None and condition is None:
            kind = type(self).__name__
            raise ConfigError(f"this {kind} is conditional; give the class of each sample")
        return condition


def _added(values: Tensor) -> Tensor:
    """Return (b,) of values (b,) or (b, k): those of several discriminators added up."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def _mean(values: Tensor) -> Tensor:
    """Return (b,) of values (b,) or (b, k): the mean over several discriminators."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def telling(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of telling classes (b,), or each of the attributes (b, k): (b,)."""
    if label.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, label, reduction="none").sum(1)
    return F.cross_entropy(logits, label, reduction="none")


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of a network's layers, without embeddings."""
    for module in network.modules():
        if not isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)
