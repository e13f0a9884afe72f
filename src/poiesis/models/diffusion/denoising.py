"""What all models that learn to remove noise share: network, loss, guidance, sampling.

A model of the family says how it noises its data (`marginal`), which levels it trains at
(`draw_times`), what its network predicts (`prediction`) and over which levels it samples (`path`).
Its `denoiser` then is the one thing that samplers, guidance and likelihoods know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch, Loss, Optim, Phase, Schedule, Stage
from poiesis.models.diffusion.classifying import Classifying
from poiesis.models.diffusion.edits import Edits, precise
from poiesis.models.diffusion.grids import make_network, padded_view
from poiesis.models.diffusion.guidance import Guided, guided
from poiesis.models.diffusion.options import NetworkOptions
from poiesis.models.image_condition import FromPictures, Task, fitting, task_of
from poiesis.nn.denoising_mlp import DenoisingMLP
from poiesis.rng import Noise
from poiesis.sampling import counting, diffusion, solvers
from poiesis.spec import Classes, Condition, Grid, Spec, Vector

__all__ = ["DenoisingModel"]

_SHOWN = 0.5
"""Share of samples whose first estimate a self-conditioned network is shown in training."""
_FAR = 10.0
"""Beyond so many standard deviations an estimate of unbounded data is no news to the network."""


class DenoisingModel(Classifying, Edits, FromPictures):
    """Base of diffusion and flow-matching models."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Classifying.Config, NetworkOptions):
        """Options of the network and its training."""

        task: Task = "none"
        """Learn images given a picture made of each: smaller ones (upscale-2, upscale-4), grey ones
        (colourise), with holes (inpaint), instead of classes. Pairs (--data.pairs) need none."""
        self_condition: bool = False
        """Show the network its estimate of the clean data at the step before (arXiv 2208.04202,
        section 3.2); a step of training then takes a third to a half longer."""
        conditional: bool = True
        """Learn the classes, captions or pairs, where the data has any."""
        label_dropout: float = 0.1
        """Share of samples trained without their class, caption or picture, which guidance
        needs."""
        min_snr: float = 0.0
        """Caps the weight of a level, as an error of the clean data, at this signal-to-noise ratio
        (arXiv 2303.09556: 5); 0 is no cap."""
        batch_size: int = 64
        """Samples per step."""
        learning_rate: float = 1e-3
        """Step size of Adam."""
        warmup: float = 100
        """Steps over which the step size rises (a share of the run if below 1)."""
        decay: Literal["constant", "cosine"] = "cosine"
        """How the step size goes on after that."""
        clip: float = 1.0
        """Largest gradient norm."""
        ema: float = 0.999
        """Decay per step of the averaged weights, with which it samples; 0 is none."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("label_dropout", self.label_dropout, low=0, high=1)
            check("min_snr", self.min_snr, low=0)
            check("batch_size", self.batch_size, low=1)
            check("learning_rate", self.learning_rate, low=0, open_low=True)
            check("warmup", self.warmup, low=0)
            check("clip", self.clip, low=0, open_low=True)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling(Classifying.Sampling):
        """How samples are drawn."""

        sampler: Literal[
            "ancestral",
            "ddim",
            "euler",
            "heun",
            "dpm-solver++",
            "dpm-solver++sde",
            "unipc",
            "adaptive",
        ] = "dpm-solver++"
        """euler (ddim without noise), heun, dpm-solver++, unipc and adaptive are deterministic;
        ancestral and dpm-solver++sde add noise on the way, as ddim does by its eta."""
        steps: int | None = None
        """Steps from noise to data; None is what the sampler needs: 20 for dpm-solver++, 50 for
        ddim. heun calls its network twice a step, the others once."""
        eta: float = 0.0
        """Noise of ddim: 0 is deterministic, 1 is DDPM with the smaller variance."""
        variance: Literal["large", "small"] = "large"
        """Noise of ancestral: of the forward step, or less, as much as clean data would explain."""
        order: int = 2
        """Order of dpm-solver++ (1 to 3) and of unipc's predictor (1 to 3)."""
        tolerance: float = 1e-3
        """Error that adaptive allows in a step."""
        guidance: float = 1.0
        """Strength s of u + s (c − u): 0 ignores the class or caption, 1 follows it, more
        exaggerates it."""
        guidance_interval: tuple[float, float] = (0.0, 1.0)
        """Shares of noise σ/(α + σ) between which guidance acts; outside, the class is followed
        plainly (arXiv 2404.07724)."""
        guidance_rescale: float = 0.0
        """Share of guidance's growth in contrast that is taken back (arXiv 2305.08891: 0.7)."""
        guide: str = ""
        """A weaker version to steer away from (autoguidance, arXiv 2406.02507): RUN or RUN@STEP, of
        this model or a smaller one trained alike. It doubles the calls of a network."""
        guide_scale: float = 2.0
        """Strength w of weak + w (own − weak) with a guide: 1 is without it."""
        clip: Literal["none", "static", "dynamic"] = "static"
        """Keep the clean estimate of images in range: clamp it, or (dynamic) shrink it when it
        overshoots."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("steps", self.steps, low=1)
            check("eta", self.eta, low=0, high=1)
            check("order", self.order, low=1, high=3)
            check("tolerance", self.tolerance, low=1e-9, high=1)
            check("guidance", self.guidance, low=0, high=100)
            for share in self.guidance_interval:
                check("guidance_interval", share, low=0, high=1)
            if len(self.guidance_interval) != 2:
                raise ConfigError(
                    f"guidance_interval = {self.guidance_interval} is not two shares of noise, "
                    "e.g. 0.1,0.9"
                )
            check("guidance_rescale", self.guidance_rescale, low=0, high=1)
            check("guide_scale", self.guide_scale, low=0, high=100)

    known_as: ClassVar[str]
    """Name in messages."""
    default_steps: ClassVar[Mapping[str, int]] = {
        "ancestral": 1000,
        "ddim": 50,
        "euler": 50,
        "heun": 18,
        "dpm-solver++": 20,
        "dpm-solver++sde": 50,
        "unipc": 12,
        "adaptive": 20,
    }
    """Steps that each sampler takes unless told."""

    reads_captions = True

    config: Any
    spec: Grid | Vector

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition if config.conditional else None)
        self.take_up(task_of(config.task, spec, self.condition))
        self.learn_classes(condition)
        classes = self.told.count if isinstance(self.told, Classes) else 0
        if isinstance(spec, Vector):
            self.mlp = DenoisingMLP(
                features=spec.features * (2 if config.self_condition else 1),
                width=config.channels,
                layers=config.blocks,
                dropout=config.dropout,
                classes=classes,
                outputs=self.outputs * spec.features,
            )
            return
        assert isinstance(spec, Grid)
        given = spec.channels if config.self_condition else 0
        given += self.task.channels + 1 if self.task else 0
        network = make_network(config, spec, self.told, given=given, outputs=self.outputs)
        self.add_module(self.network_name, network)

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images and videos in [-1, 1] and audio, padded to be halved; vectors.

        Raises SpecError for other data and for a network that does not fit it.
        """
        if isinstance(spec, Vector):
            if config.network != "mlp":
                raise SpecError(f"network {config.network!r} needs images; use mlp for a {spec}")
            return fitting(config.task, spec, spec)
        if config.network == "mlp" and isinstance(spec, Grid):
            raise SpecError(f"network 'mlp' learns vectors; use unet for a {spec}")
        return fitting(config.task, spec, padded_view(config, spec, cls.known_as))

    @property
    def bounded(self) -> bool:
        """Whether data lie in [-1, 1]: images and videos, not their latents, nor audio."""
        return isinstance(self.spec, Grid) and self.spec.domain == "signed"

    @property
    def network_name(self) -> str:
        """Name of the network that learns."""
        if isinstance(self.spec, Vector):
            return "mlp"
        return "dit" if self.config.network == "dit" else "unet"

    @property
    def _network(self) -> nn.Module:
        return getattr(self, self.network_name)

    # -- what a model of the family says --------------------------------------------------------

    @property
    def outputs(self) -> int:
        """How many values the network says of each one of the data."""
        return 1

    @property
    def prediction(self) -> diffusion.Prediction:
        """What the network predicts."""
        raise NotImplementedError

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw the noise levels to train at, (b,)."""
        raise NotImplementedError

    def draw_noise(self, batch: Batch) -> Tensor:
        """Draw the noise that is added to the data, of its shape."""
        return batch.randn(*batch.x.shape[1:])

    def draw_pair(self, batch: Batch, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the data and the noise to train on, each of batch.x's shape."""
        return batch.x, self.draw_noise(batch)

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return noise levels at shares (b,) in [0, 1) of their distribution in training."""
        raise NotImplementedError

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of levels (b,), each (b,), float32."""
        raise NotImplementedError

    def network_level(self, t: Tensor) -> Tensor:
        """Return levels (b,) as the network is told them, a scale of 0…1000."""
        return t

    @property
    def cleanest(self) -> float:
        """Lowest noise level."""
        return 0

    def level_of(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise levels (b,) with σ/α = ratio (b,), or the nearest, and their α (b,)."""
        raise NotImplementedError

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """Return what x_t is multiplied by before the network sees it."""
        return 1.0

    def path(self, options: Any) -> diffusion.Path:
        """Return the levels to sample over; raises ConfigError."""
        raise NotImplementedError

    def prior_std(self, path: diffusion.Path) -> float:
        """Return the standard deviation of what sampling begins with."""
        return path.sigma[0]

    def steps_of(self, options: Any) -> int:
        """Return how many steps sampling takes."""
        return options.steps or self.default_steps[options.sampler]

    # -- what the engine asks -------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Adam over the network."""
        config = self.config
        schedule = Schedule(kind=config.decay, warmup=config.warmup)
        return {
            "adam": Optim(
                networks=(self.network_name,),
                lr=config.learning_rate,
                schedule=schedule,
                clip=config.clip,
            ),
            **self.classifier_optimizers(),
        }

    def stages(self) -> Sequence[Stage]:
        """One stage of one phase, and a second one for a classifier."""
        phase = Phase(name="train", loss=self.loss, step=("adam",))
        phases = (phase, *self.classifier_phases())
        return [Stage(phases=phases, batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the network's weights; without it samples are noisy (FID 8 instead of 3)."""
        decay: float = self.config.ema
        return {self.network_name: decay}

    # -- training -------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the squared error of the target at a random level (arXiv 2006.11239, eq. 14)."""
        t = self.draw_times(batch)
        error, further, logs = self._errors(batch, t, self._dropped(batch))
        weighted = error
        if self.config.min_snr > 0:
            alpha, sigma = self.marginal(t)
            # In units of the clean data the plain loss weighs a level by 1/gain².
            gain = torch.as_tensor(diffusion.x0_gain(self.prediction, alpha, sigma)).square()
            snr = (alpha / sigma).square()
            weighted = error * gain * torch.minimum(snr, snr.new_tensor(self.config.min_snr))
        return weighted + further, {"mse": error.detach(), **logs}

    def further_loss(
        self, x0: Tensor, x_t: Tensor, t: Tensor, output: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return what is added to the error (b,), and its logs. output: all the network says."""
        return 0.0, {}

    def _dropped(self, batch: Batch) -> Tensor | None:
        """Return the batch's classes, captions or pictures, some of them, by sample, as none."""
        condition = batch.condition if self.told else None
        if condition is not None:
            dropped = batch.rand() < self.config.label_dropout
            dropped = dropped.view(-1, *[1] * (condition.ndim - 1))
            condition = condition.masked_fill(dropped, self.told.none)
        return condition

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error per sample at levels spread evenly over the batch."""
        rows = torch.arange(batch.size, device=batch.x.device) + batch.draws.start
        # Multiples of the golden ratio cover the levels evenly, also among the rows of one class.
        t = self.spread_times(rows * ((math.sqrt(5) - 1) / 2) % 1)
        condition = batch.condition if self.told else None
        mse = self._errors(batch, t, condition)[0]
        return {"mse": mse, **self.classifier_values(batch, t)}

    def _errors(
        self, batch: Batch, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | float, dict[str, Tensor]]:
        """Return the squared error (b,) of the network's output, and what `further_loss` says."""
        x0, eps = self.draw_pair(batch, condition)
        alpha, sigma = self._level(t)
        x_t = alpha * x0 + sigma * eps
        target = diffusion.target_of(self.prediction, x0, eps, alpha, sigma)
        output = self.output(x_t, t, condition, *self._earlier(batch, x_t, t, condition))
        error = (output[:, : x0.shape[1]] - target).square().flatten(1).mean(1)
        return error, *self.further_loss(x0, x_t, t, output)

    def _earlier(
        self, batch: Batch, x_t: Tensor, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the estimates that the network is shown, if it is: its first, without gradient.

        In training half of the samples are shown zeros instead, as when sampling begins.
        """
        if not self.config.self_condition:
            return ()
        with torch.no_grad():
            first = self.estimate(x_t, t, condition, torch.zeros_like(x_t))[0]
        if batch.training:
            shown = batch.rand() < _SHOWN
            first = first * shown.view(-1, *[1] * (first.ndim - 1))
        return (first,)

    def output(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None, earlier: Tensor | None = None
    ) -> Tensor:
        """Return the network's output at levels t (b,), float32, (b, outputs · channels, …).

        earlier: the estimate of x0 that a self-conditioned network is shown.
        """
        counting.asked(len(x_t))
        x_t = x_t.float() * self.input_scale(*self._level(t))
        if earlier is not None:
            limit = 1.0 if self.bounded else _FAR
            x_t = torch.cat([x_t, earlier.float().clamp(-limit, limit)], 1)
        if self.task is not None:
            if condition is None:
                condition = x_t.new_zeros(len(x_t), self.task.channels + 1, *x_t.shape[2:])
            x_t, condition = torch.cat([x_t, self.task.seen(condition)], 1), None
        return self._network(x_t, self.network_level(t), condition).float()

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of levels (b,), to be multiplied with samples."""
        shape = (-1, *[1] * len(self.spec.shape))
        alpha, sigma = self.marginal(t)
        return alpha.view(shape), sigma.view(shape)

    # -- sampling -------------------------------------------------------------------------------

    def denoiser(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, float32, whatever the network was trained for.

        x_t: α_t x0 + σ_t ε, (b, *spec.shape). t: noise levels (b,), of the model's own scale; those
        below its cleanest are taken for it.
        condition: int64, classes (b,) or captions (b, length), or pictures; None is without. A
        self-conditioned network is called twice.
        """
        return self.estimate(x_t, t, condition)[0]

    def estimate(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        earlier: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the estimate of x0, as `denoiser`, and what else the network says of it.

        earlier: for a self-conditioned network, an estimate that it then goes on from, or zeros;
        None is its own of this x_t.
        """
        shown = ()
        if self.config.self_condition:
            if earlier is None:
                earlier = self.estimate(x_t, t, condition, torch.zeros_like(x_t))[0]
            shown = (earlier,)
        t = t.clamp(min=self.cleanest)
        alpha, sigma = self._level(t)
        output = self.output(x_t, t, condition if self.told else None, *shown)
        channels = x_t.shape[1]
        x0 = diffusion.x0_from(self.prediction, output[:, :channels], x_t.float(), alpha, sigma)
        return x0, output[:, channels:]

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Draw len(noise) samples; without a condition it is left open."""
        path = self.path(options)
        x = noise.randn(*self.spec.shape) * self.prior_std(path)
        return self._solved(path, x, noise, condition, options)

    def _solved(
        self,
        path: diffusion.Path,
        x: Tensor,
        noise: Noise,
        condition: Tensor | None,
        options: Any,
    ) -> Tensor:
        """Return data from x at the path's first point, by the sampler of the options."""
        solver = solvers.SOLVERS[options.sampler]
        denoise = self._denoise(condition, options)
        own = {name: self.solver_option(name, options, denoise) for name in solver.options}
        x = solver.run(denoise, path, precise(x), noise, **own).float()
        return self.agreed(x.clamp(-1, 1) if self.bounded else x, condition)

    def solver_option(self, name: str, options: Any, denoise: Guided) -> Any:
        """Return the value of a solver's option."""
        return getattr(options, name)

    def _denoise(self, condition: Tensor | None, options: Any) -> Guided:
        """Return the denoiser that samplers call."""
        return Guided(self, condition, options)

    def guided(self, x_t: Tensor, t: Tensor, condition: Tensor | None, options: Any) -> Tensor:
        """Return the estimate of x0 with guidance."""
        return guided(self, self.denoiser, x_t, t, condition, options)
