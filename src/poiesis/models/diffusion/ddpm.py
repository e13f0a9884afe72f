"""Denoising diffusion probabilistic models, with the refinements that became standard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    Optim,
    Phase,
    Schedule,
    Stage,
    preset,
)
from poiesis.models.capabilities import LogProb
from poiesis.nn.unet import UNet
from poiesis.rng import Noise
from poiesis.sampling import diffusion, solvers
from poiesis.spec import Classes, Grid, Spec

__all__ = ["DDPM"]

_NETWORK_CALLS = {"ancestral": 1000, "ddim": 50, "dpm-solver++": 20}
"""Steps that each sampler takes unless told."""


class DDPM(GenerativeModel):
    """Denoising diffusion: a U-Net learns to remove noise, sampling removes it step by step.

    Good at: the most faithful and varied images here, stable training with one plain squared
    error, class guidance. Not good at: speed of sampling (20 network calls instead of one; the
    original sampler takes 1000), a compact latent space. Cost: one U-Net pass and back per step.
    x0, ε and v targets, linear and cosine schedules; samplers DDPM, DDIM and DPM-Solver++(2M).

    Papers: DDPM (arXiv 2006.11239), improved DDPM (2102.09672), DDIM (2010.02502),
    DPM-Solver++ (2211.01095), classifier-free guidance (2207.12598), v target (2202.00512).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the network, the diffusion and its training."""

        channels: int = 32
        """Width of the first resolution; a multiple of `groups`."""
        multipliers: tuple[int, ...] = (1, 2, 2)
        """Width of each resolution in units of `channels`, from fine to coarse."""
        blocks: int = 1
        """Residual blocks per resolution on the way down (one more on the way up)."""
        attention: tuple[int, ...] = (8,)
        """Resolutions with self-attention, by longer side in pixels; the coarsest always ends in
        one."""
        groups: int = 8
        """Groups of the group normalisation."""
        dropout: float = 0.0
        """Share of features dropped inside residual blocks."""
        conditional: bool = True
        """Learn the classes, where the data has any."""
        label_dropout: float = 0.1
        """Share of samples trained without their class, which guidance needs."""
        timesteps: int = 1000
        """Number of noise levels T."""
        schedule: Literal["linear", "cosine"] = "cosine"
        """Noise schedule; cosine keeps more signal, which small images need."""
        prediction: Literal["eps", "x0", "v"] = "v"
        """What the network predicts: the noise, the clean image, or α ε − σ x0."""
        batch_size: int = 64
        """Images per step."""
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
            check("channels", self.channels, low=2)
            check("groups", self.groups, low=1)
            check("blocks", self.blocks, low=1, high=16)
            check("dropout", self.dropout, low=0, high=0.99)
            check("label_dropout", self.label_dropout, low=0, high=1)
            check("timesteps", self.timesteps, low=10, high=100_000)
            check("batch_size", self.batch_size, low=1)
            check("learning_rate", self.learning_rate, low=0, open_low=True)
            check("warmup", self.warmup, low=0)
            check("clip", self.clip, low=0, open_low=True)
            check("ema", self.ema, low=0, high=0.999999)
            if not self.multipliers:
                raise ConfigError("multipliers is empty: give one width per resolution, e.g. 1,2,2")
            for multiplier in self.multipliers:
                check("multipliers", multiplier, low=1)
            if self.channels % self.groups:
                raise ConfigError(
                    f"channels = {self.channels} is not a multiple of groups = {self.groups}"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """How samples are drawn."""

        sampler: Literal["ancestral", "ddim", "dpm-solver++"] = "dpm-solver++"
        """ancestral is DDPM's own; ddim and dpm-solver++ need fewer steps."""
        steps: int | None = None
        """Network calls per sample; None is 20 for dpm-solver++, 50 for ddim, all for ancestral."""
        spacing: Literal["uniform", "trailing", "quadratic", "logsnr"] = "trailing"
        """Which levels the steps visit: DDIM's uniform and quadratic, evenly from pure noise
        (trailing), or even in the log of the signal-to-noise ratio."""
        eta: float = 0.0
        """Noise of ddim: 0 is deterministic, 1 is DDPM with the smaller variance."""
        guidance: float = 1.0
        """Strength s of u + s (c − u): 0 ignores the class, 1 follows it, more exaggerates it."""
        clip: Literal["none", "static", "dynamic"] = "static"
        """Keep the clean estimate in range: clamp it, or (dynamic) shrink it when it overshoots."""

        def __post_init__(self) -> None:
            check("steps", self.steps, low=1)
            check("eta", self.eta, low=0, high=1)
            check("guidance", self.guidance, low=0, high=100)

    config: Config
    spec: Grid

    def __init__(self, config: Config, spec: Spec, condition: Classes | None = None) -> None:
        if not isinstance(spec, Grid):
            raise SpecError(f"ddpm learns images; this data is a {spec}")
        super().__init__(config, spec, condition if config.conditional else None)
        sizes = [max(spec.size) // 2**i for i in range(len(config.multipliers))]
        strange = [size for size in config.attention if size not in sizes]
        if strange:
            raise ConfigError(
                f"attention = {strange[0]} is not a resolution of this network;"
                f" it has {', '.join(map(str, sizes))} px"
            )
        self.unet = UNet(
            image_channels=spec.channels,
            channels=config.channels,
            multipliers=config.multipliers,
            blocks=config.blocks,
            attention=[size in config.attention for size in sizes],
            groups=config.groups,
            dropout=config.dropout,
            classes=self.condition.count if self.condition else 0,
        )
        make = {"linear": diffusion.linear_schedule, "cosine": diffusion.cosine_schedule}
        self.schedule = make[config.schedule](config.timesteps)
        # Follow from the configuration alone, so they stay out of the checkpoint.
        self.alpha: Tensor
        self.sigma: Tensor
        self.register_buffer("alpha", self.schedule.alpha.float(), persistent=False)
        self.register_buffer("sigma", self.schedule.sigma.float(), persistent=False)

    # -- presets --------------------------------------------------------------------------------

    @preset
    @staticmethod
    def default(spec: Spec) -> DDPM.Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        side = _side(spec)
        # Small images: many small steps of a light network teach more in the same minutes.
        light = {"batch_size": 32, "learning_rate": 2e-3} if side <= 32 else {}
        if side <= 16:
            attention = (_padded(side, 2) // 2,)
            return DDPM.Config(multipliers=(1, 2), attention=attention, **light)
        levels = max(3, math.ceil(math.log2(side / 8)) + 1)
        attention = (_padded(side, levels) // 2 ** (levels - 1),)
        if side <= 32:
            return DDPM.Config(channels=16, multipliers=(1, 2, 4), attention=attention, **light)
        return DDPM.Config(multipliers=(1, *[2] * (levels - 1)), attention=attention)

    @preset
    @staticmethod
    def paper(spec: Spec) -> DDPM.Config:
        """DDPM's network and training for CIFAR-10: 35.7M parameters, unconditional."""
        sizes = [_padded(_side(spec), 4) // 2**i for i in range(4)]
        return DDPM.Config(
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention=(16,) if 16 in sizes else (sizes[1],),
            groups=32,
            dropout=0.1,
            conditional=False,
            schedule="linear",
            prediction="eps",
            batch_size=128,
            learning_rate=2e-4,
            warmup=5000,
            decay="constant",
            ema=0.9999,
        )

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> DDPM.Config:
        """The same as `paper`, under the name of its data."""
        return DDPM.paper(spec)

    # -- what the engine asks -------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [-1, 1], padded so that every resolution is half the one before."""
        _side(spec)
        assert isinstance(spec, Grid)
        size = tuple(_padded(side, len(config.multipliers)) for side in spec.size)
        return Grid(channels=spec.channels, size=size, domain="signed", levels=spec.levels)

    def optimizers(self) -> Mapping[str, Optim]:
        """Adam over the U-Net."""
        config = self.config
        schedule = Schedule(kind=config.decay, warmup=config.warmup)
        return {
            "adam": Optim(
                networks=("unet",), lr=config.learning_rate, schedule=schedule, clip=config.clip
            )
        }

    def stages(self) -> Sequence[Stage]:
        """One stage of one phase."""
        phase = Phase(name="train", loss=self.loss, step=("adam",))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the U-Net's weights; without it samples are noisy (FID 8 instead of 3)."""
        return {"unet": self.config.ema}

    # -- training -------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: int) -> Loss:
        """Squared error of the target at a random level (arXiv 2006.11239, eq. 14), pixel mean."""
        t = batch.randint(self.config.timesteps)
        condition = batch.condition if self.condition else None
        if condition is not None:
            dropped = batch.rand() < self.config.label_dropout
            condition = condition.masked_fill(dropped, self._no_class)
        error = self._error(batch, t, condition)
        return error, {"mse": error.detach()}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error per sample at levels spread evenly over the batch."""
        rows = torch.arange(batch.size, device=batch.x.device) + batch.draws.start
        # Multiples of the golden ratio cover the levels evenly, also among the rows of one class.
        t = (rows * ((math.sqrt(5) - 1) / 2) % 1 * self.config.timesteps).long()
        return {"mse": self._error(batch, t, batch.condition if self.condition else None)}

    def _error(self, batch: Batch, t: Tensor, condition: Tensor | None) -> Tensor:
        x0, eps = batch.x, batch.randn(*batch.x.shape[1:])
        alpha, sigma = self._level(t)
        target = diffusion.target_of(self.config.prediction, x0, eps, alpha, sigma)
        output = self.unet(alpha * x0 + sigma * eps, t, condition)
        return (output.float() - target).square().flatten(1).mean(1)

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)

    @property
    def _no_class(self) -> int:
        assert self.condition is not None
        return self.condition.count

    # -- sampling -------------------------------------------------------------------------------

    def denoiser(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, float32 (b, c, h, w), whatever the network was trained for.

        x_t: α_t x0 + σ_t ε. t: int64 (b,), levels 0…T−1, 0 the cleanest. condition: int64 (b,);
        None is without a class.
        """
        alpha, sigma = self._level(t)
        output = self.unet(x_t, t, condition if self.condition else None).float()
        return diffusion.x0_from(self.config.prediction, output, x_t, alpha, sigma)

    def draw(self, noise: Noise, condition: Tensor | None, options: Sampling) -> Tensor:
        """Draw len(noise) images in [-1, 1]; without a condition the class is left open."""
        total = self.config.timesteps
        steps = options.steps or min(_NETWORK_CALLS[options.sampler], total)
        if options.steps is None and options.sampler == "ancestral":
            steps = total
        path = diffusion.make_path(self.schedule, steps, options.spacing)
        x = noise.randn(*self.spec.shape)

        def denoise(x_t: Tensor, level: int) -> Tensor:
            t = torch.full((len(x_t),), level, device=x_t.device)
            return diffusion.clip_x0(
                self._guided(x_t, t, condition, options.guidance), options.clip
            )

        if options.sampler == "ancestral":
            x = solvers.ancestral(denoise, path, x, noise)
        elif options.sampler == "ddim":
            x = solvers.ddim(denoise, path, x, noise, eta=options.eta)
        else:
            x = solvers.dpm_solver_pp(denoise, path, x)
        return x.clamp(-1, 1)

    def _guided(self, x_t: Tensor, t: Tensor, condition: Tensor | None, scale: float) -> Tensor:
        if self.condition is None or condition is None or scale == 0:
            return self.denoiser(x_t, t)
        if scale == 1:
            return self.denoiser(x_t, t, condition)
        both = torch.cat([condition, torch.full_like(condition, self._no_class)])
        estimates = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        conditional, unconditional = estimates.chunk(2)
        return diffusion.guide(conditional, unconditional, scale)

    # -- likelihood -----------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 50, seed: int = 0
    ) -> LogProb:
        """Return the variational bound of images as integer levels (arXiv 2006.11239, eq. 5).

        samples: how many of its terms are evaluated per image, each at one draw of noise; T or
        more is all. Fewer are drawn in strata of the log signal-to-noise ratio and weighted, which
        leaves the bound's expectation as it is; `error` is then its standard error.
        """
        check("samples", samples, low=2)
        noise = Noise(seed, range(len(x)), device=x.device)
        end, sigma_end = diffusion.decoder_level(self.schedule, self.spec.levels)

        def estimate(t: Tensor) -> Tensor:
            alpha, sigma = self._level(t)
            x_t = alpha * x + sigma * noise.randn(*x.shape[1:])
            return self.denoiser(x_t, t, condition).clamp(-1, 1)

        def level(t: int) -> Tensor:
            return torch.full((len(x),), t, device=x.device)

        nats = diffusion.decoder_log_likelihood(
            x, estimate(level(end)), sigma_end, self.spec.levels
        ) - diffusion.prior_kl(self.schedule, x)
        error = None
        total = self.config.timesteps - end
        everything = samples >= total
        if everything:
            for i in range(end + 1, self.config.timesteps):
                nats -= diffusion.step_kl(self.schedule, level(i), x, estimate(level(i)))
        else:
            # A term is about as large as the fall of log(α/σ) over its step, so draw by that.
            share = -self.schedule.log_snr[end:].diff().to(x.device)
            share = share / share.sum()
            terms = []
            for i in range(samples - 1):
                place = (i + noise.rand().double()) / (samples - 1)
                index = torch.searchsorted(share.cumsum(0), place).clamp(max=len(share) - 1)
                t = index + end + 1
                kl = diffusion.step_kl(self.schedule, t, x, estimate(t))
                terms.append(kl / share[index])
            stacked = torch.stack(terms)
            nats -= stacked.mean(0)
            # Neighbouring strata stand in for two draws of one: a little above the true error.
            pairs = stacked[: len(terms) // 2 * 2].unflatten(0, (-1, 2))
            error = (pairs[:, 0] - pairs[:, 1]).square().sum(0).sqrt().float() / len(terms)
        detail = "VLB" if everything else f"VLB, {samples} of {total} steps"
        return LogProb(
            nats=nats.float(),
            kind="bound",
            measure="discrete",
            dims=self.spec.dims,
            detail=detail,
            error=error,
        )


def _side(spec: Spec) -> int:
    """Return the longer side of an image spec; raises SpecError for anything else."""
    if not isinstance(spec, Grid) or len(spec.size) != 2:
        raise SpecError(f"ddpm learns images, (channels, height, width); this data is a {spec}")
    return max(spec.size)


def _padded(side: int, resolutions: int) -> int:
    """Return the next multiple of 2^(resolutions − 1)."""
    unit = 2 ** (resolutions - 1)
    return -(-side // unit) * unit
