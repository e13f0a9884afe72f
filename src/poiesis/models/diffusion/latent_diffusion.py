"""Latent diffusion: an autoencoder makes images small, a flow learns what is left (2112.10752).

Shape letters: b batch, c channels of an image, d of a latent, h height, w width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from poiesis.config import check, check_each
from poiesis.errors import ConfigError
from poiesis.models.autoencoders.vae import kl_normal
from poiesis.models.autoencoders.vq_vae import VQVAE
from poiesis.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    Optim,
    Phase,
    Schedule,
    Stage,
    preset,
    within,
)
from poiesis.models.diffusion.autoguidance import check_alike, opened
from poiesis.models.diffusion.flow_matching import FlowMatching
from poiesis.models.diffusion.grids import padded, side_of, step_of
from poiesis.models.diffusion.sizes import patches
from poiesis.models.gans.losses import LOSSES
from poiesis.nn.strided import strided, upwards
from poiesis.rng import Noise
from poiesis.spec import Condition, Grid, Spec

__all__ = ["LatentDiffusion"]


class LatentDiffusion(GenerativeModel):
    """Flow matching in the latent space of an autoencoder: fast at larger images.

    Good at: images of 64 px and more, many times faster to train and sample than pixel by pixel;
    latents to edit. Not good at: tiny images; details that the autoencoder loses. Cost: two stages
    in one training, the autoencoder's with a discriminator; sampling as `flow-matching` on the
    small latents, then one pass of the decoder.

    Paper: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
    arXiv:2112.10752.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of both stages."""

        first: str = ""
        """Run of a trained vq-vae to take as the first stage; empty: train an autoencoder here."""
        widths: tuple[int, ...] = (64, 128)
        """Channels of the autoencoder's levels, each of half the size of the one before."""
        blocks: int = 2
        """Residual blocks of its encoder and decoder."""
        latent_channels: int = 4
        """Channels of a latent."""
        kl: float = 1e-6
        """Weight of the latents' divergence from the normal distribution, a sum over their values,
        beside the sum of the pixels' absolute errors."""
        adversarial: float = 0.5
        """Weight of the discriminator's part beside the pixels', at equal gradients; 0 is none."""
        adversarial_start: float = 0.5
        """Share of the first stage after which that part begins."""
        discriminator_width: int = 32
        """Channels of the discriminator's first layer."""
        learning_rate: float = 1e-3
        """Learning rate of the autoencoder's and the discriminator's Adam."""
        batch_size: int = 32
        """Images per step of the first stage."""
        first_share: float = 0.4
        """Share of the run that the first stage takes, [0.01, 0.99]."""
        conditional: bool = True
        """Learn the classes, where the data has any."""
        flow: FlowMatching.Config = dataclasses.field(default_factory=FlowMatching.Config)
        """Options of the second stage."""

        def __post_init__(self) -> None:
            check_each("widths", self.widths, low=1, high=8192)
            check("blocks", self.blocks, low=0, high=64)
            check("latent_channels", self.latent_channels, low=1, high=1024)
            check("kl", self.kl, low=0)
            check("adversarial", self.adversarial, low=0)
            check("adversarial_start", self.adversarial_start, low=0, high=1)
            check("discriminator_width", self.discriminator_width, low=1, high=8192)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("batch_size", self.batch_size, low=1)
            check("first_share", self.first_share, low=0.01, high=0.99)

    @dataclass(frozen=True, kw_only=True)
    class Sampling(FlowMatching.Sampling):
        """How latents are drawn."""

    config: Config
    spec: Grid

    # -- presets ---------------------------------------------------------------------------------

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Latents of a quarter of the side, of half of it for images up to 32 px."""
        side = side_of(spec, "latent-diffusion")
        widths = (64,) if side <= 16 else (32, 64) if side <= 32 else (64, 128)
        multipliers = (1,) if side <= 8 else (1, 2)
        inner = padded(side, len(widths) + len(multipliers)) // 2 ** len(widths)
        flow = FlowMatching.Config(
            channels=64,
            multipliers=multipliers,
            blocks=2,
            attention=(inner // 2 ** (len(multipliers) - 1),),
            batch_size=64,
            dit=patches((inner, inner)),
        )
        return LatentDiffusion.Config(widths=widths, flow=flow)

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return images in [-1, 1], padded so that both networks can halve or cut them."""
        side_of(spec, "latent-diffusion")
        assert isinstance(spec, Grid)
        step = 2 ** len(config.widths) * step_of(config.flow)
        size = tuple(-(-side // step) * step for side in spec.size)
        return Grid(channels=spec.channels, size=size, domain="signed", levels=spec.levels)

    @classmethod
    def parts(cls, config: Config) -> Mapping[str, str]:
        """Return the first stage, where it is a run."""
        return {"first": config.first} if config.first else {}

    @classmethod
    def view_with(cls, config: Config, spec: Spec, parts: Mapping[str, Any]) -> Spec:
        """Return the first stage's view; raises ConfigError for a model that can't be it."""
        first = parts.get("first")
        if first is None:
            return cls.view(config, spec)
        if not isinstance(first, VQVAE):
            raise ConfigError(
                f"first = {config.first!r} is a {type(first).__name__}; give a run of vq-vae"
            )
        return first.spec

    def __init__(
        self,
        config: Config,
        spec: Grid,
        condition: Condition | None = None,
        *,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, spec, condition if config.conditional else None)
        self.first = (parts or {}).get("first")
        if self.first is None:
            channels, shape = config.latent_channels, config.widths
            step = 2 ** len(shape)
            size = tuple(side // step for side in spec.size)
            self.encoder = strided(spec.channels, shape, config.blocks, 2 * channels)
            self.decoder = upwards(channels, shape, config.blocks, spec.channels)
            self.discriminator = _patches(spec.channels, config.discriminator_width)
        else:
            channels, size = self.first.config.code_dim, self.first.grid
        latent = Grid(channels=channels, size=size, domain="real")
        self.flow = FlowMatching(config.flow, latent, self.condition)
        self.register_buffer("scale", torch.zeros(()))
        self.scale: Tensor

    def train(self, mode: bool = True) -> Self:
        """Set training mode, of the flow too: it is a part that learns here."""
        super().train(mode)
        self.flow.train(mode)
        return self

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for the autoencoder, one for the discriminator, and the flow's own."""
        c = self.config
        flow = {f"flow-{n}": within("flow", o) for n, o in self.flow.optimizers().items()}
        if self.first is not None:
            return flow
        how = {"lr": c.learning_rate, "betas": (0.5, 0.9), "schedule": Schedule(kind="cosine")}
        return {
            "autoencoder": Optim(networks=("encoder", "decoder"), **how),
            "discriminator": Optim(networks=("discriminator",), **how),
            **flow,
        }

    def stages(self) -> Sequence[Stage]:
        """Return the stage of the autoencoder and that of the flow over its latents."""
        c = self.config
        (inner,) = self.flow.stages()
        learn, *further = (
            dataclasses.replace(phase, step=tuple(f"flow-{name}" for name in phase.step))
            for phase in inner.phases
        )
        flow = Stage(
            name="flow",
            phases=(dataclasses.replace(learn, name="flow"), *further),
            batch_size=c.flow.batch_size,
            share=1 - c.first_share,
            transform=self.to_latents,
        )
        if self.first is not None:
            return [flow]
        phases = [
            Phase(name="autoencoder", loss=self.autoencoder_loss, step=("autoencoder",)),
            Phase(name="discriminator", loss=self.discriminator_loss, step=("discriminator",)),
        ]
        first = Stage(
            name="autoencoder",
            phases=tuple(phases if c.adversarial else phases[:1]),
            batch_size=c.batch_size,
            share=c.first_share,
        )
        return [first, flow]

    def ema(self) -> Mapping[str, float]:
        """Average the flow."""
        return {"flow": self.config.flow.ema}

    def autoencoder_loss(self, batch: Batch, step: int) -> Loss:
        """Return absolute error + KL + the discriminator's part, per sample (b,).

        The last is weighted so that its gradient at the decoder's last layer is config.adversarial
        times that of the error (arXiv:2012.09841, eq. 7).
        """
        c = self.config
        mean, log_variance = self._posterior(batch.x)
        z = mean + (log_variance / 2).exp() * batch.randn(*mean.shape[1:])
        back = self.decoder(z).float()
        error = (back - batch.x).abs().flatten(1).sum(1)
        kl = kl_normal(mean, log_variance).flatten(1).sum(1)
        value = error + c.kl * kl
        logs: dict[str, Tensor | float] = {"absolute": error / self.spec.dims, "kl": kl}
        if c.adversarial and self.progress >= c.adversarial_start:
            seems = LOSSES["hinge"].generator(self._judge(back), None)
            weight = c.adversarial * self._balance(error, seems)
            value = value + weight * seems
            logs |= {"adversarial": seems.detach(), "balance": weight.detach()}
        return value, logs

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the hinge loss of telling images from what comes back, per sample (b,)."""
        with torch.no_grad():
            back = self.decode(self._posterior(batch.x)[0] * self._unit)
        return LOSSES["hinge"].discriminator(self._judge(batch.x), self._judge(back)), {}

    def _balance(self, error: Tensor, seems: Tensor) -> Tensor:
        """Return how much larger the error's gradient is than the discriminator's, at most 1e4."""
        last: Any = self.decoder[-1].weight
        if not torch.is_grad_enabled():
            return error.new_zeros(())
        norms = [
            torch.autograd.grad(value.mean(), last, retain_graph=True)[0].norm()
            for value in (error, seems)
        ]
        return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()

    def _judge(self, x: Tensor) -> Tensor:
        """Return the mean logit over an image's patches, (b,)."""
        return self.discriminator(x).float().flatten(1).mean(1)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of a latent, each (b, d, h, w), float32."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    @property
    def _unit(self) -> Tensor:
        """The scale of latents, 1 before the second stage."""
        return torch.where(self.scale > 0, self.scale, torch.ones_like(self.scale))

    @torch.no_grad()
    def to_latents(self, batch: Batch) -> Batch:
        """Return the batch with x its latents, scaled to unit variance by the first batch seen."""
        if not self.scale > 0:
            self.scale.copy_(1 / self.encode(batch.x)["z"].std().clamp(min=1e-6))
        return dataclasses.replace(batch, x=self.encode(batch.x)["z"])

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return, each (b,), what a stage watches: the squared error of images, or the flow's."""
        if batch.x.shape[1:] == self.flow.spec.shape:
            return self.flow.validate(batch)
        return {"mse": (self.reconstruct(batch.x) - batch.x).square().flatten(1).mean(1)}

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Decode latents drawn by the flow, (n, *spec.shape)."""
        if options.guide:
            self._check_guide(options.guide)
        return self.decode(self.flow.draw(noise, condition, options))

    def _check_guide(self, guide: str) -> None:
        """Raise ConfigError unless the latents of a guide are those of this model."""
        found = opened(guide, self.device)
        check_alike(guide, found, self)
        theirs = found.state_dict()
        for name, own in self.state_dict().items():
            if name.startswith(("flow.", "discriminator.")):
                continue
            # While samples are drawn, own weights may be held in lower precision.
            if name not in theirs or not torch.equal(own, theirs[name].to(own.dtype)):
                raise ConfigError(
                    f"guide = {guide!r} has another first stage, so its latents are others; "
                    "give an earlier checkpoint of the same run (RUN@STEP)"
                )

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return latents z (b, d, h, w), of about unit variance once the flow is trained."""
        if self.first is not None:
            return {"z": self.first.encode(x)["z"] * self._unit}
        return {"z": self._posterior(x)[0] * self._unit}

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1] of latents z (b, d, h, w), or of what `encode` returned."""
        z = (latent["z"] if isinstance(latent, Mapping) else latent) / self._unit
        if self.first is not None:
            return self.first.decode(z)
        return self.decoder(z).float().clamp(-1, 1)

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the images decoded from their latents, in the view."""
        return self.decode(self.encode(x))


def _patches(channels: int, width: int) -> nn.Sequential:
    """A discriminator of patches (arXiv:1611.07004): (b, c, h, w) → logits (b, 1, h', w')."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, padding=1),
    )
