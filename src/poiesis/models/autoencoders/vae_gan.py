"""VAE-GAN: Larsen et al., arXiv:1512.09300.

Shape letters: b batch, z latent dimensions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from poiesis.config import check, check_each
from poiesis.errors import SpecError
from poiesis.models.autoencoders.networks import (
    Labelled,
    dense,
    fitting,
    level_widths,
    residual,
)
from poiesis.models.autoencoders.vae import kl_normal
from poiesis.models.base import Batch, GenerativeModel, Loss, Optim, Phase, Stage, preset
from poiesis.models.gans.losses import LOSSES
from poiesis.rng import Noise
from poiesis.spec import Classes, Grid, Spec, Vector

__all__ = ["VAEGAN"]

_LOSS = LOSSES["non-saturating"]


class VAEGAN(GenerativeModel):
    """VAE-GAN: a VAE that measures likeness by a discriminator's features instead of pixels.

    Good at: sharper samples and reconstructions than a VAE's, with codes to interpolate and edit.

    Not good at: likelihoods (it has none); pixel-exact reconstruction; staying stable for long.

    Cost: three networks and two updates a step; one pass to sample.

    Paper: Larsen et al., Autoencoding beyond pixels using a learned similarity metric,
    arXiv:1512.09300.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the VAE-GAN."""

        network: Literal["residual", "mlp"] = "residual"
        """residual: convolutions with residual blocks; mlp: dense layers."""
        widths: tuple[int, ...] = (32, 64)
        """Channels of each level, of half the size of the one before; mlp: hidden units. The
        discriminator has the same."""
        blocks: int = 1
        """Residual blocks per level of encoder and decoder (network residual)."""
        latent_dim: int = 32
        """Dimensions of the latent code."""
        likeness: float = 0.1
        """Weight, for the decoder, of the error in feature space beside the adversarial loss (the
        paper's gamma)."""
        learning_rate: float = 5e-4
        """Learning rate of all three Adams."""
        beta1: float = 0.5
        """First-moment decay of all three Adams; the second is 0.999."""
        batch_size: int = 64
        """Samples per step."""
        ema: float = 0.999
        """Decay per step of the averaged weights of encoder and decoder; 0 is none."""

        def __post_init__(self) -> None:
            check_each("widths", self.widths, low=1, high=8192)
            check("blocks", self.blocks, low=0, high=64)
            check("latent_dim", self.latent_dim, low=1, high=65536)
            check("likeness", self.likeness, low=0, open_low=True)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("beta1", self.beta1, low=0, high=0.999)
            check("batch_size", self.batch_size, low=2)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options of the VAE-GAN."""

        temperature: float = 1.0
        """Standard deviation of the prior that the latent codes are drawn from."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Residual convolutions for images, as deep as they need; dense layers for vectors."""
        if isinstance(spec, Grid):
            return VAEGAN.Config(widths=level_widths(spec))
        return VAEGAN.Config(network="mlp", widths=(256, 256), latent_dim=min(32, spec.dims))

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return images in [-1, 1], vectors as they are."""
        if isinstance(spec, Vector):
            if config.network != "mlp":
                raise SpecError(f"network {config.network!r} needs images; use mlp for a {spec}")
            return spec
        return dataclasses.replace(fitting("a VAE-GAN", config, spec, audio=False), domain="signed")

    def __init__(self, config: Config, spec: Spec, condition: Classes | None = None) -> None:
        super().__init__(config, spec)
        builder = {"residual": residual, "mlp": dense}[config.network]
        encoder, decoder = builder(config, spec, 2, 1)
        self.encoder, self.decoder = Labelled(encoder, 0), Labelled(decoder, 0)
        self.discriminator = _Discriminator(config, spec)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for encoder and decoder, one for the discriminator."""
        c = self.config
        networks = {"autoencoder": ("encoder", "decoder"), "discriminator": ("discriminator",)}
        return {
            name: Optim(networks=own, lr=c.learning_rate, betas=(c.beta1, 0.999))
            for name, own in networks.items()
        }

    def stages(self) -> Sequence[Stage]:
        """Return one stage: a discriminator step, then one of encoder and decoder."""
        phases = (
            Phase(name="discriminator", loss=self.discriminator_loss, step=("discriminator",)),
            Phase(name="autoencoder", loss=self.autoencoder_loss, step=("autoencoder",)),
        )
        return [Stage(phases=phases, batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average encoder and decoder."""
        return {"encoder": self.config.ema, "decoder": self.config.ema}

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the loss on data against reconstructions and samples of the prior (b,).

        The first term of the GAN loss counts once, the two kinds of fakes half each.
        """
        with torch.no_grad():
            z, _ = self._draw_posterior(batch)
            rebuilt = self._data(self.decoder(z, None))
            made = self._data(self.decoder(batch.randn(self.config.latent_dim), None))
        real, _ = self.discriminator(batch.x)
        fakes = [self.discriminator(fake)[0] for fake in (rebuilt, made)]
        values = sum(_LOSS.discriminator(real, fake) for fake in fakes) / 2
        assert isinstance(values, Tensor)
        return values, {"real_score": real.detach(), "fake_score": fakes[1].detach()}

    def autoencoder_loss(self, batch: Batch, step: int) -> Loss:
        """Return KL + error in feature space + adversarial loss / likeness (b,) (algorithm 1).

        The adversarial loss moves the decoder alone: the codes it starts from hold no gradient.
        Divided by `likeness`, the decoder's sum is the paper's up to a factor, which Adam ignores.
        """
        z, kl = self._draw_posterior(batch)
        rebuilt = self._data(self.decoder(z, None))
        with torch.no_grad():
            _, wanted = self.discriminator(batch.x)
        _, found = self.discriminator(rebuilt)
        error = 0.5 * (found - wanted).float().square().sum(1)
        fakes = [
            self._data(self.decoder(code, None))
            for code in (z.detach(), batch.randn(self.config.latent_dim))
        ]
        scores = [self.discriminator(fake)[0] for fake in fakes]
        adversarial = sum(_LOSS.generator(score, None) for score in scores) / 2
        assert isinstance(adversarial, Tensor)
        logs: dict[str, Tensor | float] = {"kl": kl, "error": error, "adversarial": adversarial}
        return kl + error + adversarial / self.config.likeness, logs

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of reconstructions and the KL, each (b,)."""
        mean, log_variance = self._posterior(batch.x)
        rebuilt = self._data(self.decoder(mean, None)).float()
        error = (rebuilt - batch.x).square().flatten(1).mean(1)
        return {"mse": error, "kl": kl_normal(mean, log_variance).sum(1)}

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x, None).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)  # exp stays finite when training starts far off

    def _draw_posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return z ~ q(z|x) (b, z) and KL(q || N(0, 1)) (b,)."""
        mean, log_variance = self._posterior(batch.x)
        z = mean + (0.5 * log_variance).exp() * batch.randn(self.config.latent_dim)
        return z, kl_normal(mean, log_variance).sum(1)

    def _data(self, output: Tensor) -> Tensor:
        """Return the decoder's output as data in the view."""
        return output.tanh() if isinstance(self.spec, Grid) else output

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Decode draws from the prior, (n, *spec.shape)."""
        z = noise.randn(self.config.latent_dim) * options.temperature
        return self._data(self.decoder(z, None)).float()

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return the posterior's mean and log_variance, each (b, z), and z, which is the mean."""
        mean, log_variance = self._posterior(x)
        return {"z": mean, "mean": mean, "log_variance": log_variance}

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return data in the view. latent: z (b, z) or what `encode` returned."""
        z = latent["z"] if isinstance(latent, Mapping) else latent
        return self._data(self.decoder(z, None)).float()

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the decoded posterior mean, in the view."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits (b,), higher is more real."""
        return self.discriminator(x)[0].float()


class _Discriminator(nn.Module):
    """Data → logit (b,) and the features (b, f) that likeness is measured in."""

    def __init__(self, config: VAEGAN.Config, spec: Spec) -> None:
        super().__init__()
        widths = config.widths
        if config.network == "mlp":
            layers: list[nn.Module] = [nn.Flatten()]
            for a, b in itertools.pairwise((spec.dims, *widths)):
                layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
            outputs = widths[-1]
        else:
            layers = []
            size = spec.shape[1:]
            for number, (a, b) in enumerate(itertools.pairwise((spec.shape[0], *widths))):
                layers.append(nn.Conv2d(a, b, 4, stride=2, padding=1))
                # No normalisation at the input, as in DCGAN; over groups of channels, so that a
                # sample's features don't depend on what else is in the batch.
                if number:
                    layers.append(nn.GroupNorm(math.gcd(b, 8), b))
                layers.append(nn.LeakyReLU(0.2))
                size = tuple(side // 2 for side in size)
            layers.append(nn.Flatten())
            outputs = widths[-1] * math.prod(size)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features).flatten(), features
