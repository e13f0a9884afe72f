"""Consistency models: from noise to data in one or two calls (arXiv 2303.01469, 2310.14189).

Here x_σ = x0 + σ ε, as in EDM, whatever noise the teacher was trained with: its own level of the
same σ/α is looked up (`level_of`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, Loss, Optim, Phase, Schedule, Stage, preset
from poiesis.models.diffusion.denoising import DenoisingModel
from poiesis.models.diffusion.edm import EDM
from poiesis.models.diffusion.sizes import network_sizes
from poiesis.models.image_condition import FromPictures
from poiesis.rng import Noise
from poiesis.sampling.diffusion import DATA_STD
from poiesis.sampling.processes import exploding
from poiesis.spec import Condition, Grid, Spec

__all__ = ["Consistency"]

_LOW, _HIGH = 0.002, 80.0
_SECOND = 0.821
"""σ of the last of several calls (arXiv 2310.14189, section 4)."""
_HUBER = 0.00054
"""c per square root of the values, of the pseudo-Huber loss (arXiv 2310.14189, section 3.3)."""


class Consistency(FromPictures):
    """A network that leads every point of a flow to its end at once: samples in one or two calls.

    Good at: the fastest sampling by a diffusion network, distilled from a trained `ddpm`, `edm`,
    `flow-matching` or `score-sde` (--model.teacher RUN) or trained by itself. Not good at: matching
    its teacher's quality in full; likelihoods, editing. Cost: distillation has two or three calls
    of the teacher and two of the network in each step.

    Papers: Song et al., Consistency Models, arXiv:2303.01469; improved training, 2310.14189.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(EDM.Config):
        """Options of the distillation or training; with a teacher the network is its own."""

        teacher: str = ""
        """Run of a trained diffusion or flow-matching model; empty: learn from the data alone."""
        guidance: float = 1.0
        """Strength of the teacher's guidance that goes into the student."""
        levels: int = 10
        """Noise levels at the start of the training; neighbours are to agree."""
        last_levels: int = 160
        """Noise levels in the end."""
        double_every: int = 1000
        """Steps after which the number of levels doubles."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("guidance", self.guidance, low=0, high=100)
            if self.self_condition:
                raise ConfigError(
                    "self_condition = True has no use in a consistency model, whose few steps each "
                    "begin anew: leave it out"
                )
            check("levels", self.levels, low=2, high=10_000)
            check("last_levels", self.last_levels, low=self.levels, high=10_000)
            check("double_every", self.double_every, low=1)
            if self.classifier:
                raise ConfigError(
                    "classifier = True has no use here: a consistency model takes its few steps "
                    "without one; leave it out"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """How samples are drawn."""

        steps: int = 2
        """Calls of the network: 1 or 2, rarely more."""

        def __post_init__(self) -> None:
            check("steps", self.steps, low=1, high=1000)

    reads_captions = True

    config: Config
    spec: Grid

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """EDM's small network for learning by itself; with a teacher its network, a lower rate."""
        sizes = {**network_sizes(spec, "consistency"), "learning_rate": 4e-4}
        return Consistency.Config(**sizes, noise_mean=-1.1, noise_std=2.0, label_dropout=0.0)

    @classmethod
    def parts(cls, config: Config) -> Mapping[str, str]:
        """Return the teacher, if there is one."""
        return {"teacher": config.teacher} if config.teacher else {}

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return EDM's view, for a model without a teacher."""
        return EDM.view(config, spec)

    @classmethod
    def view_with(cls, config: Config, spec: Spec, parts: Mapping[str, Any]) -> Spec:
        """Return the teacher's view; raises ConfigError for a model that can't teach."""
        teacher = parts.get("teacher")
        if teacher is None:
            return cls.view(config, spec)
        if not isinstance(teacher, DenoisingModel):
            raise ConfigError(
                f"teacher = {config.teacher!r} is a {type(teacher).__name__}; give a run of ddpm, "
                "edm, flow-matching or score-sde"
            )
        return teacher.spec

    def __init__(
        self,
        config: Config,
        spec: Spec,
        condition: Condition | None = None,
        *,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        teacher = (parts or {}).get("teacher")
        if teacher is None:
            own = {f.name: getattr(config, f.name) for f in dataclasses.fields(EDM.Config)}
            student: Any = EDM(EDM.Config(**own), spec, condition)
        else:
            student = copy.deepcopy(teacher)
            student.classifier = None
        super().__init__(config, spec, student.told)
        self.student, self.teacher = student, teacher
        self.take_up(student.task)

    # -- what the engine asks -------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Adam over the student."""
        c = self.config
        schedule = Schedule(kind=c.decay, warmup=c.warmup)
        how = Optim(networks=("student",), lr=c.learning_rate, schedule=schedule, clip=c.clip)
        return {"adam": how}

    def stages(self) -> Sequence[Stage]:
        """One stage of one phase."""
        phase = Phase(name="train", loss=self.loss, step=("adam",))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the student."""
        return {"student": self.config.ema}

    # -- training -------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return how far the ends of two neighbouring points lie apart (arXiv 2310.14189, eq. 7).

        The lower point's end is the target and has no gradient. The two lie on one path of the
        teacher's flow, by a step of Heun's method; without a teacher both are the same data with
        the same noise. The pseudo-Huber distance is weighted by 1/(σ' − σ).
        """
        c = self.config
        levels = min(c.levels * 2 ** min(step // c.double_every, 30), c.last_levels)
        value = self._distance(batch, batch.rand(), levels)
        return value, {"levels": float(levels)}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distance at the final number of levels, spread evenly."""
        rows = torch.arange(batch.size, device=batch.x.device) + batch.draws.start
        shares = rows * ((math.sqrt(5) - 1) / 2) % 1
        return {"distance": self._distance(batch, shares, self.config.last_levels)}

    def _distance(self, batch: Batch, shares: Tensor, levels: int) -> Tensor:
        sigmas = torch.tensor(_grid(levels), device=batch.x.device)
        low, high = self._neighbours(sigmas, shares)
        y = batch.condition if self.condition is not None else None
        eps = batch.randn(*batch.x.shape[1:])
        x_high = batch.x + self._wide(high) * eps
        with torch.no_grad():
            if self.teacher is None:
                x_low = batch.x + self._wide(low) * eps
            else:
                x_low = self._step_of_teacher(x_high, high, low, y)
            target = self.end(x_low, low, y)
        error = (self.end(x_high, high, y) - target).square().flatten(1).sum(1)
        slack = _HUBER * math.sqrt(self.spec.dims)
        return ((error + slack**2).sqrt() - slack) / (high - low)

    def _neighbours(self, sigmas: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ of the lower and the higher point, by quantiles of the training's ln σ."""
        c = self.config
        normal = torch.special.ndtr((sigmas.log() - c.noise_mean) / c.noise_std)
        index = torch.searchsorted(
            (normal[1:] - normal[0]) / (normal[-1] - normal[0]), shares.double().to(normal)
        ).clamp(max=len(sigmas) - 2)
        return sigmas[index].float(), sigmas[index + 1].float()

    def _step_of_teacher(self, x: Tensor, high: Tensor, low: Tensor, y: Tensor | None) -> Tensor:
        """Return x at σ = low on the teacher's flow (arXiv 2303.01469, eq. 6), by Heun's method."""
        length = self._wide(low - high)
        slope = (x - self._estimate(self.teacher, x, high, y)) / self._wide(high)
        guess = x + length * slope
        after = (guess - self._estimate(self.teacher, guess, low, y)) / self._wide(low)
        return x + length / 2 * (slope + after)

    def _wide(self, sigma: Tensor) -> Tensor:
        return sigma.view(-1, *[1] * len(self.spec.shape))

    def _estimate(self, model: Any, x: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        """Return a model's estimate of x0 at x_σ = x0 + σ ε, the teacher's guided."""
        t, alpha = model.level_of(sigma)
        x_t = self._wide(alpha) * x
        if model is self.teacher and y is not None and self.config.guidance != 1:
            return model.guided(x_t, t, y, model.Sampling(guidance=self.config.guidance))
        if model is self.student and model.config.self_condition:
            # As its teacher is at the start: one call.
            return model.estimate(x_t, t, y, torch.zeros_like(x_t))[0]
        return model.denoiser(x_t, t, y)

    def end(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return where the path through x at σ (b,) ends, float32; at σ = 0.002 it is x itself.

        c_skip x + c_out F with the paper's coefficients (eq. 5, appendix C), F being what the
        network's estimate of x0 holds beyond EDM's share of x.
        """
        estimate = self._estimate(self.student, x, sigma, condition)
        s = self._wide(sigma)
        edm = DATA_STD**2 / (s**2 + DATA_STD**2)
        skip = DATA_STD**2 / ((s - _LOW) ** 2 + DATA_STD**2)
        return skip * x + (s - _LOW) / s * (estimate - edm * x)

    # -- sampling -------------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Sampling) -> Tensor:
        """Draw len(noise) samples in options.steps calls (arXiv 2303.01469, algorithm 1)."""
        steps = options.steps
        sigmas = [_HIGH * (_SECOND / _HIGH) ** (i / max(1, steps - 1)) for i in range(steps)]
        x = torch.zeros(len(noise), *self.spec.shape, device=noise.device)
        for i, sigma in enumerate(sigmas):
            added = sigma if i == 0 else math.sqrt(sigma**2 - _LOW**2)
            x = x + added * noise.randn(*self.spec.shape)
            x = self.end(x, torch.full((len(x),), sigma, device=x.device), condition)
            x = x.clamp(-1, 1) if getattr(self.spec, "domain", "") == "signed" else x
        return self.agreed(x, condition)


def _grid(levels: int) -> list[float]:
    """Return σ from 0.002 to 80 in EDM's spacing, ascending, one more than `levels` steps."""
    sigmas = exploding(_LOW, _HIGH).path(levels + 1, "karras").sigma[:-1]
    return list(sigmas)[::-1]
