"""Variational autoencoder: Kingma & Welling, arXiv:1312.6114.

Shape letters: b batch, c channels, h height, w width, k values per pixel that the likelihood needs,
s importance samples, z latent dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.config import check, check_each
from poiesis.errors import CapabilityError, ConfigError, SpecError
from poiesis.models.autoencoders.mixture import (
    bernoulli_cdf,
    log_bernoulli,
    log_logistic,
    log_mixture,
    logistic_cdf,
    mixture_cdf,
    mixture_mean,
    mixture_sample,
    values_per_pixel,
)
from poiesis.models.autoencoders.networks import (
    Labelled,
    dense,
    fitting,
    level_widths,
    plain,
    residual,
    wave_shape,
)
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
from poiesis.models.capabilities import ChooseLatent, LevelCdf, LogProb
from poiesis.rng import Noise, generator
from poiesis.spec import Classes, Grid, Spec, Vector

__all__ = ["VAE", "kl_normal", "log_normal"]

_ROWS = 4096  # decoder rows at a time in log_prob: bounds its memory


class VAE(GenerativeModel):
    """Variational autoencoder: smooth latent space, likelihood bound, fast.

    Good at: latent codes for interpolation, reduction and anomaly scores; a likelihood bound in
    nats; covering all of the data; training that just works, in minutes.

    Not good at: sharp pictures: samples of natural images come out blurred.

    Cost: one pass to train and one to sample; thousands of 28 px images a second on a CPU core.

    Paper: Kingma & Welling, Auto-Encoding Variational Bayes, arXiv:1312.6114. Importance-weighted
    bound: Burda, Grosse & Salakhutdinov, arXiv:1509.00519.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the VAE."""

        network: Literal["residual", "conv", "mlp"] = "residual"
        """residual: convolutions with residual blocks; conv: plain strided convolutions; mlp."""
        widths: tuple[int, ...] = (32, 64)
        """Channels of each level, of half the size of the one before; mlp: hidden units; residual
        on audio: channels."""
        blocks: int = 1
        """Residual blocks per level (network residual)."""
        latent_dim: int = 32
        """Dimensions of the latent code."""
        likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
        """p(x|z): bernoulli for bits (gray levels count as probabilities), gaussian with learned
        spread for real values, logistic (discretised) for levels."""
        mixtures: int = 1
        """Logistics per pixel, mixed with learned weights (likelihood logistic)."""
        dynamic: bool = False
        """Draw gray levels as bits anew whenever they are seen (bernoulli)."""
        beta: float = 1.0
        """Weight of the KL term (beta-VAE); 1 is the bound itself."""
        kl_warmup: int = 0
        """Steps over which the KL weight rises from 0 to beta."""
        free_bits: float = 0.0
        """Nats per latent dimension that cost nothing: its KL counts as max(this, batch mean)."""
        conditional: bool = False
        """Condition encoder and decoder on the class; needs data with classes."""
        weight_decay: float = 0.0
        """Decay of the weight matrices (AdamW), against overfitting of small data sets."""
        learning_rate: float = 1e-3
        """Learning rate of Adam."""
        decay: bool = True
        """Decay the learning rate to zero over the run (cosine), else keep it constant."""
        batch_size: int = 128
        """Samples per step."""
        ema: float = 0.999
        """Decay per step of the averaged weights; 0 is none."""

        def __post_init__(self) -> None:
            check_each("widths", self.widths, low=1, high=8192)
            check("blocks", self.blocks, low=0, high=64)
            check("latent_dim", self.latent_dim, low=1, high=65536)
            check("mixtures", self.mixtures, low=1, high=1000)
            if self.mixtures > 1 and self.likelihood != "logistic":
                raise ConfigError(
                    f"mixtures = {self.mixtures} needs likelihood logistic, "
                    f"not {self.likelihood!r}; set it to 1"
                )
            if self.dynamic and self.likelihood != "bernoulli":
                raise ConfigError(
                    f"dynamic = True makes bits, which likelihood {self.likelihood!r} is not for; "
                    "use bernoulli"
                )
            check("beta", self.beta, low=0)
            check("kl_warmup", self.kl_warmup, low=0)
            check("free_bits", self.free_bits, low=0)
            check("weight_decay", self.weight_decay, low=0, high=100)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("batch_size", self.batch_size, low=1)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options of the VAE."""

        temperature: float = 1.0
        """Standard deviation of the prior that the latent codes are drawn from."""
        mean: bool | None = None
        """Return the decoder's mean (of bits: their probability), else draw from p(x|z). None: the
        mean of images and audio; vectors are drawn, for their spread is no blemish."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """An MLP for vectors and images of up to 1,024 values, else residual convolutions.

        On a CPU the MLP reaches a better bound on small images in the same minutes.
        """
        small = not isinstance(spec, Grid) or (spec.dims <= 1024 and _is_image(spec))
        return cls.mlp(spec) if small else cls.residual(spec)

    @preset
    @classmethod
    def mlp(cls, spec: Spec) -> Any:
        """Two hidden layers: for vectors and images of few pixels."""
        tiny = spec.dims <= 256
        if isinstance(spec, Vector):
            return cls.Config(
                network="mlp",
                widths=(256, 256),
                latent_dim=min(32, max(2, spec.dims)),
                likelihood=_likelihood(spec),
                weight_decay=0.1,
            )
        return cls.Config(
            network="mlp",
            widths=(256, 256) if tiny else (512, 512),
            likelihood=_likelihood(spec),
            # The 1,797 digits of 8x8 px overfit within a minute without it.
            weight_decay=1.0 if tiny else 0.3,
        )

    @preset
    @classmethod
    def residual(cls, spec: Spec) -> Any:
        """Residual convolutions, as deep as the image needs; of audio along time."""
        audio = isinstance(spec, Grid) and not _is_image(spec)
        shape: dict[str, Any] = {"widths": level_widths(spec)}
        shape = wave_shape(spec) if audio else shape
        return cls.Config(**shape, likelihood=_likelihood(spec), weight_decay=0.3)

    @preset
    @classmethod
    def compress(cls, spec: Spec) -> Any:
        """For lossless compression: residual convolutions and mixtures of logistics over levels."""
        if not isinstance(spec, Grid):
            raise SpecError(f"preset compress is for the levels of images, not {spec}; use default")
        return cls.Config(
            widths=level_widths(spec), likelihood="logistic", mixtures=5, weight_decay=0.1
        )

    @preset
    @classmethod
    def tutorial(cls, spec: Spec) -> Any:
        """The convolutional VAE of TensorFlow's tutorial: 69,989 parameters at 28 px."""
        return cls.Config(
            network="conv",
            widths=(32, 64),
            latent_dim=2,
            learning_rate=1e-4,
            decay=False,
            batch_size=32,
            ema=0.0,
        )

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [0, 1] (bernoulli) or [-1, 1], vectors and audio as they are."""
        if isinstance(spec, Vector):
            if config.network != "mlp":
                raise SpecError(f"network {config.network!r} needs images; use mlp for a {spec}")
            if config.likelihood == "logistic":
                raise SpecError(f"likelihood logistic needs levels; use gaussian for a {spec}")
            if config.likelihood == "bernoulli" and spec.domain not in ("bits", "unit"):
                raise SpecError(f"likelihood bernoulli needs bits; use gaussian for a {spec}")
            return spec
        image = fitting("a VAE", config, spec)
        if image.domain == "real":
            if config.likelihood != "gaussian":
                raise SpecError(
                    f"likelihood {config.likelihood} needs levels; use gaussian for a {spec}"
                )
            return image
        domain = "unit" if config.likelihood == "bernoulli" else "signed"
        if config.dynamic:
            domain = "bits"
        return dataclasses.replace(image, domain=domain)

    def __init__(self, config: Any, spec: Spec, condition: Classes | None = None) -> None:
        if config.conditional and condition is None:
            raise ConfigError("conditional = True needs data with classes; set it to False")
        super().__init__(config, spec, condition if config.conditional else None)
        builder = {"residual": residual, "conv": plain, "mlp": dense}[config.network]
        k = 1
        if config.likelihood == "logistic":
            # As many values per channel as the mixture needs, rounded up.
            k = 2 if config.mixtures == 1 else -(-self._values() // spec.shape[0])
        encoder, decoder = builder(config, spec, 2, k)
        classes = self.condition.count if self.condition else 0
        self.encoder = Labelled(encoder, classes)
        self.decoder = Labelled(decoder, classes)
        if config.likelihood == "gaussian":
            # sigma-VAE (arXiv:2006.13202): one spread for all pixels, or one per feature.
            self.log_sigma = nn.Parameter(torch.zeros(spec.dims if isinstance(spec, Vector) else 1))

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for all."""
        c = self.config
        optim = Optim(
            kind="adamw" if c.weight_decay else "adam",
            lr=c.learning_rate,
            weight_decay=c.weight_decay,
            decay_matrices_only=True,
            schedule=Schedule(kind="cosine" if c.decay else "constant"),
        )
        return {"vae": optim}

    def stages(self) -> Sequence[Stage]:
        """Return one stage of one phase."""
        phase = Phase(name="vae", loss=self.loss, step=("vae",))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average all weights."""
        return {"": self.config.ema}

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the negative ELBO in nats (arXiv:1312.6114, eq. 10), with its KL weighted."""
        reconstruction, kl_bz = self._terms(batch)
        kl = kl_bz.sum(1)
        cost = kl
        if self.config.free_bits:
            # A dimension whose batch mean is below the floor costs the floor, a constant.
            free = kl_bz.mean(0) < self.config.free_bits
            cost = torch.where(free, self.config.free_bits, kl_bz).sum(1)
        beta = self.config.beta
        if self.config.kl_warmup:
            beta *= min(1.0, (step + 1) / self.config.kl_warmup)
        return reconstruction + beta * cost, {"reconstruction": reconstruction, "kl": kl}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative ELBO and its terms in nats, whatever beta and free bits are."""
        reconstruction, kl_bz = self._terms(batch)
        kl = kl_bz.sum(1)
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return -log p(x|z) (b,) for one z ~ q, and the KL of each latent dimension (b, z)."""
        mean, log_variance = self._posterior(batch.x, batch.condition)
        z = mean + (0.5 * log_variance).exp() * batch.randn(self.config.latent_dim)
        output = self.decoder(z, batch.condition)
        return -self._log_likelihood(batch.x, output), kl_normal(mean, log_variance)

    def _posterior(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.config.likelihood == "bernoulli" and isinstance(self.spec, Grid):
            x = 2 * x - 1
        mean, log_variance = self.encoder(x, condition).float().chunk(2, dim=1)
        # The bound keeps exp finite when training starts far off.
        return mean, log_variance.clamp(-20, 20)

    # -- the likelihood p(x|z) -------------------------------------------------------------------

    def _log_likelihood(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x|z) in nats, summed over pixels (b,), in float32."""
        x, output = x.float(), output.float()
        if self.config.likelihood == "bernoulli":
            # With gray levels: the mean over the images binarised with these probabilities.
            return log_bernoulli(x, output)
        elif self.config.likelihood == "gaussian":
            value = log_normal(x, output, self._log_sigma())
        elif self.config.mixtures > 1:
            output = output[:, : self._values()]
            value = log_mixture(x, output, self.config.mixtures, self.spec.levels)
        else:
            mean, log_scale = output.chunk(2, dim=1)
            value = log_logistic(x, mean, log_scale, self.spec.levels)
        return value.flatten(1).sum(1)

    def _values(self) -> int:
        """Return how many of the decoder's values per pixel describe the mixture."""
        return values_per_pixel(self.spec.shape[0], self.config.mixtures)

    def _log_sigma(self) -> Tensor:
        # In tenths, as Adam moves every parameter alike and this one has the longest way to go.
        # Softly above e^-6, as in sigma-VAE: constant data would drive it to -infinity.
        return F.softplus(10 * self.log_sigma + 6) - 6

    def _mean(self, output: Tensor) -> Tensor:
        if self.config.likelihood == "bernoulli":
            return output.float().sigmoid()
        if self.config.mixtures > 1:
            values = output.float()[:, : self._values()]
            return mixture_mean(values, self.spec.shape[0], self.config.mixtures)
        mean = output.float()[:, : self.spec.shape[0]]
        return mean.clamp(-1, 1) if _is_image(self.spec) else mean

    def _pixels(self, output: Tensor, noise: Noise) -> Tensor:
        """Draw x ~ p(x|z)."""
        output, shape = output.float(), self.spec.shape
        if self.config.likelihood == "bernoulli":
            return (noise.rand(*shape) < output.sigmoid()).float()
        if self.config.likelihood == "gaussian":
            x = output + self._log_sigma().exp() * noise.randn(*shape)
            return x.clamp(-1, 1) if _is_image(self.spec) else x
        if self.config.mixtures > 1:
            values, choice = output[:, : self._values()], noise.rand(1, *shape[1:])
            u = noise.rand(*shape)
            return mixture_sample(values, self.config.mixtures, self.spec.levels, choice, u)
        mean, log_scale = output.chunk(2, dim=1)
        u = noise.rand(*shape).clamp(1e-5, 1 - 1e-5)
        x = (mean + log_scale.exp() * (u.log() - (-u).log1p())).clamp(-1, 1)
        bins = self.spec.levels - 1
        return ((x + 1) * bins / 2).round() * 2 / bins - 1

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Decode draws from the prior, (n, *spec.shape)."""
        z = noise.randn(self.config.latent_dim) * options.temperature
        output = self.decoder(z, condition)
        mean = not isinstance(self.spec, Vector) if options.mean is None else options.mean
        return self._mean(output) if mean else self._pixels(output, noise)

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return the posterior's mean and log_variance, each (b, z), and z, which is the mean."""
        mean, log_variance = self._posterior(x, self._classes(condition))
        return {"z": mean, "mean": mean, "log_variance": log_variance}

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z), in the view. latent: z (b, z) or what `encode` returned."""
        z = latent["z"] if isinstance(latent, Mapping) else latent
        return self._mean(self.decoder(z, self._classes(condition)))

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the decoded posterior mean, in the view."""
        return self.decode(self.encode(x, condition), condition)

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 1, seed: int = 0
    ) -> LogProb:
        """Return a lower bound of log p(x): the ELBO, or the tighter IWAE bound of more samples.

        With s samples z ~ q(z|x) it is log mean p(x, z) / q(z|x) (arXiv:1509.00519, eq. 8), which
        approaches log p(x) from below as s grows. Raises ConfigError for fewer than one sample.
        With a Bernoulli likelihood and gray levels it bounds the mean log-probability of the
        images binarised with these levels as probabilities.
        """
        check("samples", samples, low=1)
        condition = self._classes(condition)
        was_training = self.training
        self.eval()
        b, z_dim = len(x), self.config.latent_dim
        noise = generator("log_prob", seed, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            mean, log_variance = self._posterior(x, condition)
            total = torch.full((b,), -math.inf, dtype=torch.float64, device=x.device)
            chunk = max(1, _ROWS // max(b, 1))
            for start in range(0, samples, chunk):
                s = min(chunk, samples - start)
                eps = torch.randn(b, s, z_dim, generator=noise, device=x.device)
                z = mean[:, None] + (0.5 * log_variance[:, None]).exp() * eps
                rows = None if condition is None else condition.repeat_interleave(s)
                output = self.decoder(z.flatten(0, 1), rows)
                log_x = self._log_likelihood(x.repeat_interleave(s, 0), output).reshape(b, s)
                # log p(z) - log q(z|x), the constants of both cancel.
                ratio = 0.5 * (eps.square() - z.square() + log_variance[:, None]).sum(2)
                weights = torch.logsumexp((log_x + ratio).double(), dim=1)
                total = torch.logaddexp(total, weights)
        self.train(was_training)
        detail = "ELBO" if samples == 1 else f"IWAE({samples})"
        if self.spec.domain == "unit" and getattr(self.spec, "levels", 2) > 2:
            detail += ", mean over binarisations of the gray levels"
        return LogProb(
            nats=total - math.log(samples),
            kind="bound",
            measure="density" if self.config.likelihood == "gaussian" else "discrete",
            dims=self.spec.dims,
            detail=detail,
        )

    @torch.no_grad()
    def bits_back(
        self,
        rows: int,
        choose: ChooseLatent,
        x: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> LevelCdf:
        """Take the latent from `choose`; return the probabilities of the levels given it.

        Raises CapabilityError for a likelihood that gives levels no probabilities.
        """
        bits = self.config.likelihood == "bernoulli" and getattr(self.spec, "levels", 0) == 2
        if not isinstance(self.spec, Grid) or not (bits or self.config.likelihood == "logistic"):
            raise CapabilityError(
                f"this VAE's likelihood {self.config.likelihood!r} gives no probabilities of "
                f"{self.spec}; train one with --model.likelihood logistic (--preset compress)"
            )
        condition = self._classes(condition)
        zero = torch.zeros(rows, self.config.latent_dim, device=self.device)
        posterior = None
        if x is not None:
            mean, log_variance = self._posterior(x, condition)
            posterior = (mean, 0.5 * log_variance)
        z = choose((zero, zero), posterior)
        output = functools.cache(lambda: self.decoder(z, condition).float())
        return lambda before, edges: self._cdf(output(), before, edges)

    def _cdf(self, output: Tensor, before: Tensor, edges: Tensor) -> Tensor:
        i, levels = before.size(1), self.spec.levels
        if self.config.likelihood == "bernoulli":
            return bernoulli_cdf(edges, output[:, i, ..., None])
        if self.config.mixtures > 1:
            values = output[:, : self._values()]
            c = self.spec.shape[0]
            return mixture_cdf(before, edges, values, c, self.config.mixtures, levels)
        mean, log_scale = output.chunk(2, dim=1)
        return logistic_cdf(edges, mean[:, i, ..., None], log_scale[:, i, ..., None], levels)

    def _classes(self, condition: Tensor | None) -> Tensor | None:
        if self.condition is None:
            return None
        if condition is None:
            raise ConfigError("this VAE is conditional; give the class of each sample")
        return condition


def _is_image(spec: Spec) -> bool:
    return isinstance(spec, Grid) and spec.domain != "real"


def kl_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)), elementwise, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def log_normal(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the log-density of a normal at x, elementwise, in nats."""
    return -0.5 * ((x - mean) * (-log_sigma).exp()).square() - log_sigma - 0.5 * math.log(math.tau)


def _likelihood(spec: Spec) -> Literal["bernoulli", "gaussian", "logistic"]:
    """Return what gives the best pictures: bernoulli for ink on paper, logistic for the rest."""
    if not isinstance(spec, Grid) or spec.domain == "real":
        return "bernoulli" if getattr(spec, "domain", "") == "bits" else "gaussian"
    ink = spec.channels == 1 and spec.dims > 256
    return "bernoulli" if spec.levels == 2 or ink else "logistic"
