"""Denoising diffusion probabilistic models, with the refinements that became standard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, preset
from poiesis.models.capabilities import LogProb
from poiesis.models.diffusion.denoising import DenoisingModel
from poiesis.models.diffusion.grids import padded, side_of
from poiesis.models.diffusion.guidance import Guided
from poiesis.models.diffusion.sizes import fast_sizes, network_sizes
from poiesis.nn.dit import PAPER
from poiesis.nn.unet import UNetOptions
from poiesis.rng import Noise
from poiesis.sampling import diffusion
from poiesis.spec import Condition, Grid, Spec

__all__ = ["DDPM"]


class DDPM(DenoisingModel):
    """Denoising diffusion: a U-Net learns to remove noise, sampling removes it step by step.

    Good at: the most faithful and varied images here, stable training with one plain squared
    error, class guidance. Not good at: speed of sampling (20 network calls instead of one; the
    original sampler takes 1000), a compact latent space. Cost: one U-Net pass and back per step.
    x0, ε and v targets, linear, cosine and sigmoid schedules; all samplers but the adaptive one.

    Papers: DDPM (arXiv 2006.11239), improved DDPM (2102.09672), DDIM (2010.02502),
    DPM-Solver++ (2211.01095), classifier-free guidance (2207.12598), v target (2202.00512).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DenoisingModel.Config):
        """Options of the network, the diffusion and its training."""

        timesteps: int = 1000
        """Number of noise levels T."""
        schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid"] = "cosine"
        """Noise schedule; cosine keeps more signal, which small images need."""
        betas: tuple[float, float] = (1e-4, 0.02)
        """First and last variance that a step adds, at 1000 levels (schedules linear and
        scaled-linear)."""
        zero_snr: bool = False
        """Stretch the schedule so that its last level is pure noise (arXiv 2305.08891); needs
        prediction v or x0."""
        prediction: Literal["eps", "x0", "v"] = "v"
        """What the network predicts: the noise, the clean image, or α ε − σ x0."""
        variance: Literal["fixed", "learned"] = "fixed"
        """Noise of a step back: the schedule's, or learned for each value, which betters the bound
        of the likelihood and short ancestral sampling (arXiv 2102.09672)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("timesteps", self.timesteps, low=10, high=100_000)
            for beta in self.betas:
                check("betas", beta, low=0, high=1, open_low=True)
            if self.zero_snr and self.prediction == "eps":
                raise ConfigError(
                    "zero_snr = True needs prediction v or x0: pure noise says nothing of the data "
                    "through eps"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling(DenoisingModel.Sampling):
        """How samples are drawn."""

        spacing: Literal["uniform", "trailing", "quadratic", "logsnr"] = "trailing"
        """Which levels the steps visit: DDIM's uniform and quadratic, evenly from pure noise
        (trailing), or even in the log of the signal-to-noise ratio."""
        variance: Literal["auto", "large", "small", "learned"] = "auto"
        """Noise of ancestral: of the forward step, or less, as much as clean data would explain, or
        as the model learned; auto is learned where it did, else large."""

    known_as = "ddpm"

    def __init__(self, config: Config, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        self.schedule = diffusion.noise_schedule(config.schedule, config.timesteps, config.betas)
        if config.zero_snr:
            self.schedule = self.schedule.to_zero_snr()
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
        return DDPM.Config(**network_sizes(spec, "ddpm"))

    @preset
    @staticmethod
    def fast(spec: Spec) -> DDPM.Config:
        """For minutes on a CPU also beyond 32 px: pixels are folded into channels."""
        return DDPM.Config(**fast_sizes(spec, "ddpm"))

    @preset
    @staticmethod
    def paper(spec: Spec) -> DDPM.Config:
        """DDPM's network and training for CIFAR-10: 35.7M parameters, unconditional."""
        sizes = [padded(side_of(spec, "ddpm's preset paper"), 4) // 2**i for i in range(4)]
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
    def improved(spec: Spec) -> DDPM.Config:
        """Improved DDPM's network and training for CIFAR-10, with learned variances: for a GPU."""
        sizes = [padded(side_of(spec, "ddpm"), 4) // 2**i for i in range(4)]
        return DDPM.Config(
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=3,
            attention=tuple(size for size in sizes if size in (16, 8)) or (sizes[1],),
            groups=32,
            unet=UNetOptions(head_width=64, scale_shift=True),
            dropout=0.3,
            conditional=False,
            timesteps=4000,
            schedule="cosine",
            prediction="eps",
            variance="learned",
            batch_size=128,
            learning_rate=1e-4,
            warmup=0,
            decay="constant",
            ema=0.9999,
        )

    @preset
    @staticmethod
    def dit_s(spec: Spec) -> DDPM.Config:
        """DiT-S/2 and the training of its paper: 33M parameters, for a GPU; with 4-px patches
        (--model.dit.patch 4) it is DiT-S/4."""
        return _dit("s", spec)

    @preset
    @staticmethod
    def dit_b(spec: Spec) -> DDPM.Config:
        """DiT-B/2: 130M parameters."""
        return _dit("b", spec)

    @preset
    @staticmethod
    def dit_l(spec: Spec) -> DDPM.Config:
        """DiT-L/2: 458M parameters."""
        return _dit("l", spec)

    @preset
    @staticmethod
    def dit_xl(spec: Spec) -> DDPM.Config:
        """DiT-XL/2: 675M parameters."""
        return _dit("xl", spec)

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> DDPM.Config:
        """The same as `paper`, under the name of its data."""
        return DDPM.paper(spec)

    # -- the noise ------------------------------------------------------------------------------

    @property
    def prediction(self) -> diffusion.Prediction:
        """What the network predicts."""
        return self.config.prediction

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw levels 0…T−1 uniformly."""
        return batch.randint(self.config.timesteps)

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return levels at shares of T."""
        return (shares * self.config.timesteps).long()

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of levels (b,)."""
        return self.alpha[t], self.sigma[t]

    def level_of(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels nearest in log(σ/α) to ratio (b,) and their α (b,)."""
        own = (self.sigma / self.alpha).log()
        t = (own[None] - ratio.log()[:, None]).abs().argmin(dim=1)
        return t, self.alpha[t]

    def path(self, options: Sampling) -> diffusion.Path:
        """Return the levels to sample over."""
        total = self.config.timesteps
        steps = options.steps or min(self.default_steps[options.sampler], total)
        return diffusion.make_path(self.schedule, steps, options.spacing)

    def prior_std(self, path: diffusion.Path) -> float:
        """Return 1: noised data have about the variance of noise."""
        return 1.0

    # -- learned variance -----------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Two where the variance is learned: the prediction and the variance."""
        return 2 if self.config.variance == "learned" else 1

    def further_loss(
        self, x0: Tensor, x_t: Tensor, t: Tensor, output: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return T/1000 of the level's term of the bound, in bits per value (2102.09672, eq. 16).

        It reaches the variance alone: the estimate of x0 has no gradient.
        """
        if self.config.variance == "fixed":
            return 0.0, {}
        predicted, rest = output.chunk(2, dim=1)
        estimate = diffusion.x0_from(self.prediction, predicted.detach(), x_t, *self._level(t))
        if self.bounded:
            estimate = estimate.clamp(-1, 1)
        share = _share(rest)
        # Of level 0 the term is the decoder's; what stands here is replaced.
        nats = diffusion.step_kl(self.schedule, t.clamp(min=1), x0, estimate, share)
        first = t == 0
        if first.any():
            levels = self.spec.levels if isinstance(self.spec, Grid) else None
            sigma = diffusion.decoder_sigma(self.schedule, 0, share[first])
            decoded = diffusion.decoder_log_likelihood(x0[first], estimate[first], sigma, levels)
            nats = nats.masked_scatter(first, -decoded)
        bits = (nats / (self.spec.dims * math.log(2))).float()
        return bits * (self.config.timesteps / 1000), {"vlb": bits.detach()}

    def solver_option(self, name: str, options: Any, denoise: Guided) -> Any:
        """Return the value of a solver's option; raises ConfigError for what is not learned."""
        value = getattr(options, name)
        if name != "variance":
            return value
        learned = self.config.variance == "learned"
        if value == "learned" and not learned:
            raise ConfigError(
                "variance = learned, but this model's is fixed; train with --model.variance "
                "learned, or take large or small"
            )
        if not learned or value in ("large", "small"):
            return "large" if value == "auto" else value

        def share() -> Tensor:
            assert denoise.rest is not None
            return _share(denoise.rest)

        return share

    # -- likelihood -----------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 50, seed: int = 0
    ) -> LogProb:
        """Return the variational bound of images as integer levels (arXiv 2006.11239, eq. 5).

        Of vectors and audio it is a bound of the density: the chain ends with N(x̂0, σ²) at the
        lowest level.

        samples: how many of its terms are evaluated per image, each at one draw of noise; T or
        more is all. Fewer are drawn in strata of the log signal-to-noise ratio and weighted, which
        leaves the bound's expectation as it is; `error` is then its standard error.
        """
        check("samples", samples, low=2)
        noise = Noise(seed, range(len(x)), device=x.device)
        levels = self.spec.levels if isinstance(self.spec, Grid) and self.bounded else None
        end, sigma_end = diffusion.decoder_level(self.schedule, levels)

        learned = self.config.variance == "learned"

        def estimate(t: Tensor) -> tuple[Tensor, Tensor | None]:
            """Return the estimate of x0 and the share of a learned variance."""
            alpha, sigma = self._level(t)
            x_t = alpha * x + sigma * noise.randn(*x.shape[1:])
            share = None
            if learned:
                x0, rest = self.estimate(x_t, t, condition)
                share = _share(rest)
            else:
                x0 = self.denoiser(x_t, t, condition)
            return x0 if levels is None else x0.clamp(-1, 1), share

        def level(t: int) -> Tensor:
            return torch.full((len(x),), t, device=x.device)

        decoded, share = estimate(level(end))
        spread: float | Tensor = sigma_end
        # Where the chain ends earlier, the network never learned to read off at its end.
        if share is not None and end == 0:
            spread = diffusion.decoder_sigma(self.schedule, end, share)
        nats = diffusion.decoder_log_likelihood(x, decoded, spread, levels)
        nats -= diffusion.prior_kl(self.schedule, x)
        error = None
        total = self.config.timesteps - end
        everything = samples >= total
        if everything:
            for i in range(end + 1, self.config.timesteps):
                nats -= diffusion.step_kl(self.schedule, level(i), x, *estimate(level(i)))
        else:
            # A term is about as large as the fall of log(α/σ) over its step, so draw by that.
            falls = -self.schedule.log_snr[end:].diff().to(x.device)
            falls = falls / falls.sum()
            terms = []
            for i in range(samples - 1):
                place = (i + noise.rand().double()) / (samples - 1)
                index = torch.searchsorted(falls.cumsum(0), place).clamp(max=len(falls) - 1)
                t = index + end + 1
                kl = diffusion.step_kl(self.schedule, t, x, *estimate(t))
                terms.append(kl / falls[index])
            stacked = torch.stack(terms)
            nats -= stacked.mean(0)
            # Neighbouring strata stand in for two draws of one: a little above the true error.
            pairs = stacked[: len(terms) // 2 * 2].unflatten(0, (-1, 2))
            error = (pairs[:, 0] - pairs[:, 1]).square().sum(0).sqrt().float() / len(terms)
        detail = "VLB" if everything else f"VLB, {samples} of {total} steps"
        return LogProb(
            nats=nats.float(),
            kind="bound",
            measure="discrete" if levels else "density",
            dims=self.spec.dims,
            detail=detail,
            error=error,
        )


def _dit(size: str, spec: Spec) -> DDPM.Config:
    """Return a transformer of the paper's and its training (arXiv 2212.09748, section 4)."""
    side_of(spec, f"ddpm's preset dit-{size}")
    return DDPM.Config(
        network="dit",
        dit=PAPER[size],
        schedule="linear",
        prediction="eps",
        variance="learned",
        batch_size=256,
        learning_rate=1e-4,
        warmup=0,
        decay="constant",
        ema=0.9999,
    )


def _share(rest: Tensor) -> Tensor:
    """Return how far from β̃ to β a learned variance lies, of outputs about -1 to 1."""
    return (rest + 1) / 2
