"""Very Deep VAE: Child, arXiv:2011.10650.

Shape letters: b batch, c channels, d latent channels, h height, k values per pixel that the
likelihood needs, s importance samples, v blocks' width, w width.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import CapabilityError, ConfigError, SpecError
from poiesis.models.autoencoders.hierarchy import (
    Decoder,
    Encoder,
    Gaussian,
    TopDown,
    gaussian_kl,
    level_sizes,
    reparameterised,
)
from poiesis.models.autoencoders.mixture import (
    bernoulli_cdf,
    log_bernoulli,
    log_mixture,
    mixture_cdf,
    mixture_mean,
    mixture_sample,
    values_per_pixel,
)
from poiesis.models.autoencoders.vae import log_normal
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
from poiesis.spec import Classes, Grid, Spec

__all__ = ["VDVAE"]

_VALUES = 2**22  # of the largest feature map in log_prob: larger ones leave the caches


class VDVAE(GenerativeModel):
    """Very Deep VAE: many layers of latent maps, from the whole image down to its details.

    Good at: the best likelihood bound of the VAEs; samples sharper than theirs; codes that tell
    coarse from fine.

    Not good at: few numbers as a code: its latent maps hold more values than the image.

    Cost: several times a VAE's per image; sampling in one pass. The preset cifar10 is the paper's,
    39 million parameters, for a GPU.

    Paper: Child, Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on
    Images, arXiv:2011.10650. Mixture of logistics: Salimans et al., PixelCNN++, arXiv:1701.05517.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the Very Deep VAE. Those of the levels go from the largest to the smallest."""

        patch: int = 4
        """Side of the square of pixels that becomes one position of the first level."""
        sizes: tuple[int, ...] = (7, 1)
        """Longer side of each level's maps; the first is the image's divided by patch, rounded
        up."""
        encoder: tuple[int, ...] = (1, 2)
        """Blocks of each level on the way up from the image."""
        decoder: tuple[int, ...] = (2, 3)
        """Blocks of each level on the way down, each with latent variables of its own."""
        widths: tuple[int, ...] = (64, 192)
        """Channels of each level."""
        resampling: Literal["learned", "average"] = "learned"
        """Between levels. learned: a strided convolution over whole windows, and its transpose;
        average: the paper's averages, and nearest neighbours."""
        bottleneck: float = 0.5
        """Width inside a block, as a share of the level's."""
        latent_channels: int = 16
        """Channels of each block's latent map."""
        likelihood: Literal["bernoulli", "logistic"] = "bernoulli"
        """p(x|z): bernoulli for bits (gray levels count as probabilities), logistic for levels:
        a mixture of discretised logistics."""
        mixtures: int = 10
        """Components of the mixture (likelihood logistic)."""
        dynamic: bool = False
        """Draw gray levels as bits anew whenever they are seen: dynamic binarisation."""
        conditional: bool = False
        """Start the decoder from the class; needs data with classes."""
        learning_rate: float = 1e-3
        """Learning rate of Adam."""
        weight_decay: float = 0.01
        """Decay of the weights (AdamW)."""
        warmup: int = 100
        """Steps over which the learning rate rises from 0."""
        decay: bool = True
        """Decay the learning rate to zero over the run (cosine), else keep it constant."""
        clip: float = 200.0
        """Largest gradient norm."""
        batch_size: int = 64
        """Samples per step."""
        ema: float = 0.999
        """Decay per step of the averaged weights; 0 is none."""

        def __post_init__(self) -> None:
            check("patch", self.patch, low=1, high=64)
            for name in ("sizes", "encoder", "decoder", "widths"):
                values = getattr(self, name)
                if len(values) != len(self.sizes) or not values:
                    raise ConfigError(
                        f"{name} = {values} has {len(values)} levels and sizes {len(self.sizes)}; "
                        "give one number per level, and at least one"
                    )
                low, high = {"sizes": (1, 512), "widths": (4, 8192)}.get(name, (0, 1000))
                for value in values:
                    check(name, value, low=1 if name == "decoder" else low, high=high)
            if any(a <= b for a, b in itertools.pairwise(self.sizes)):
                raise ConfigError(f"sizes = {self.sizes} must fall from level to level")
            check("bottleneck", self.bottleneck, low=0, high=4, open_low=True)
            check("latent_channels", self.latent_channels, low=1, high=1024)
            check("mixtures", self.mixtures, low=1, high=1000)
            if self.dynamic and self.likelihood != "bernoulli":
                raise ConfigError(
                    f"dynamic = True makes bits, which likelihood {self.likelihood!r} is not for; "
                    "use bernoulli"
                )
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("weight_decay", self.weight_decay, low=0, high=100)
            check("warmup", self.warmup, low=0)
            check("clip", self.clip, low=0, open_low=True)
            check("batch_size", self.batch_size, low=1)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options of the Very Deep VAE."""

        temperature: float = 1.0
        """Factor of the standard deviation of every prior; below 1: cleaner, less varied."""
        mean: bool = True
        """Return the decoder's mean (of bits: their probability), else draw from p(x|z)."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """Few blocks, for minutes on a CPU; ink on paper is learnt as bits, drawn anew each time.

        Positions are of 4x4 px, where details need it 2x2 px, in images of 16 px or less single.
        """
        side = max(spec.shape[1:], default=28)
        ink = isinstance(spec, Grid) and spec.channels == 1 and (spec.dims > 256 or spec.levels < 3)
        patch = 1 if side <= 16 else 2 if side <= 32 and not ink else 4
        first = -(-side // patch)
        levels: dict[str, Any] = {}
        if first > 8:
            levels = {
                "sizes": (first, -(-first // 2), 1),
                "encoder": (1, 1, 2),
                "decoder": (1, 2, 3),
                "widths": (48, 64, 192),
            }
        return cls.Config(
            patch=patch,
            **{"sizes": (first, 1), **levels},
            likelihood="bernoulli" if ink else "logistic",
            dynamic=isinstance(spec, Grid) and ink and spec.levels > 2,
        )

    @preset
    @classmethod
    def cifar10(cls, spec: Spec) -> Any:
        """The paper's network for CIFAR-10: 43 stochastic layers of width 384. Only for 32 px."""
        if not isinstance(spec, Grid) or max(spec.size) != 32:
            raise SpecError(f"preset cifar10 is for images of 32 px, not {spec}; use default")
        return cls.Config(
            patch=1,
            sizes=(32, 16, 8, 4, 1),
            encoder=(12, 7, 7, 4, 3),
            decoder=(22, 11, 6, 3, 1),
            widths=(384,) * 5,
            bottleneck=0.25,
            resampling="average",
            likelihood="logistic",
            learning_rate=2e-4,
            decay=False,
            batch_size=32,
            ema=0.9999,
        )

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [0, 1] (bernoulli; dynamic: bits) or [-1, 1]."""
        if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
            raise SpecError(f"a VDVAE learns images of 1 to 4 channels, not {spec}")
        if min(spec.size) < 8 or max(spec.size) > 64:
            raise SpecError(f"a VDVAE takes images of 8 to 64 px, not {spec.size}; resize them")
        first = -(-max(spec.size) // config.patch)
        if config.sizes[0] != first:
            raise SpecError(
                f"sizes = {config.sizes} must begin with {first} for images of {spec.size} px "
                f"and patch = {config.patch}"
            )
        domain = "unit" if config.likelihood == "bernoulli" else "signed"
        if config.dynamic:
            domain = "bits"
        return dataclasses.replace(spec, domain=domain)

    def __init__(self, config: Any, spec: Spec, condition: Classes | None = None) -> None:
        if config.conditional and condition is None:
            raise ConfigError("conditional = True needs data with classes; set it to False")
        super().__init__(config, spec, condition if config.conditional else None)
        c = k = spec.shape[0]
        if config.likelihood == "logistic":
            k = values_per_pixel(c, config.mixtures)
        sizes = level_sizes(spec.shape[1:], config)
        self.encoder = Encoder(config, c, sizes)
        self.decoder = Decoder(config, k, sizes, self.condition.count if self.condition else 0)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one AdamW for all."""
        c = self.config
        optim = Optim(
            kind="adamw",
            lr=c.learning_rate,
            betas=(0.9, 0.9),
            weight_decay=c.weight_decay,
            schedule=Schedule(kind="cosine" if c.decay else "constant", warmup=c.warmup),
            clip=c.clip,
        )
        return {"vdvae": optim}

    def stages(self) -> Sequence[Stage]:
        """Return one stage of one phase."""
        phase = Phase(name="vdvae", loss=self.loss, step=("vdvae",))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average all weights."""
        return {"": self.config.ema}

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the negative ELBO in nats (arXiv:2011.10650, eq. 1-3) (b,); log its parts."""
        reconstruction, levels = self._terms(batch)
        kl = torch.stack(list(levels.values())).sum(0)
        logs: dict[str, Tensor | float] = {"reconstruction": reconstruction, "kl": kl}
        logs |= {f"kl_{size}": value for size, value in levels.items()}
        return reconstruction + kl, logs

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative ELBO and its two terms in nats, each (b,)."""
        reconstruction, levels = self._terms(batch)
        kl = torch.stack(list(levels.values())).sum(0)
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def _terms(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Return -log p(x|z) for one z ~ q, and the KL of each level by its size, each (b,)."""
        maps = self.encoder(self._centred(batch.x))
        kl: dict[int, Tensor] = {}

        def choose(index: int, block: TopDown, x: Tensor, prior: Gaussian) -> Tensor:
            posterior = block.q(x, maps[block.level])
            size = self.config.sizes[block.level]
            kl[size] = kl.get(size, 0) + gaussian_kl(posterior, prior).flatten(1).sum(1)
            return reparameterised(posterior, batch.randn(*posterior[0].shape[1:]))

        output = self.decoder(batch.size, self._rows(batch.condition), choose)
        return -self._log_likelihood(batch.x, output), kl

    def _centred(self, x: Tensor) -> Tensor:
        return 2 * x - 1 if self.config.likelihood == "bernoulli" else x

    # -- the likelihood p(x|z) -------------------------------------------------------------------

    def _log_likelihood(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x|z) in nats, summed over pixels (b,), in float32."""
        x, output = x.float(), self._cropped(output)
        if self.config.likelihood == "bernoulli":
            return log_bernoulli(x, output)
        value = log_mixture(x, output, self.config.mixtures, self.spec.levels)
        return value.flatten(1).sum(1)

    def _cropped(self, output: Tensor) -> Tensor:
        """Return output (b, k, h, w) of the image's own size: whole patches may go beyond it."""
        height, width = self.spec.size
        return output[..., :height, :width].float()

    def _mean(self, output: Tensor) -> Tensor:
        output = self._cropped(output)
        if self.config.likelihood == "bernoulli":
            return output.sigmoid()
        return mixture_mean(output, self.spec.channels, self.config.mixtures)

    def _pixels(self, output: Tensor, noise: Noise) -> Tensor:
        """Draw x ~ p(x|z)."""
        output = self._cropped(output)
        if self.config.likelihood == "bernoulli":
            return (noise.rand(*self.spec.shape) < output.sigmoid()).float()
        choice, u = noise.rand(1, *self.spec.size), noise.rand(*self.spec.shape)
        return mixture_sample(output, self.config.mixtures, self.spec.levels, choice, u)

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Draw every block's latent map from its prior, top down; (n, *spec.shape)."""

        def choose(index: int, block: TopDown, x: Tensor, prior: Gaussian) -> Tensor:
            mean, log_sigma = prior
            eps = options.temperature * noise.randn(*mean.shape[1:])
            return reparameterised((mean, log_sigma), eps)

        output = self.decoder(len(noise), self._rows(condition), choose)
        return self._mean(output) if options.mean else self._pixels(output, noise)

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Return the latent maps z0, z1, … (b, d, h, w) of the blocks, from the smallest on.

        Each is its posterior's mean, given the means of those before it.
        """
        maps = self.encoder(self._centred(x))
        found: dict[str, Tensor] = {}

        def choose(index: int, block: TopDown, x: Tensor, prior: Gaussian) -> Tensor:
            found[f"z{index}"] = block.q(x, maps[block.level])[0]
            return found[f"z{index}"]

        self.decoder(len(x), self._classes(condition), choose)
        return found

    @torch.no_grad()
    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z), in the view. latent: what `encode` returned.

        Maps left out take their prior's mean: the first few alone show what the coarse levels
        know. Raises ConfigError for a latent without z0, or with unknown names.
        """
        known = [f"z{index}" for index in range(len(self.decoder.blocks))]
        if not isinstance(latent, Mapping) or "z0" not in latent or set(latent) - set(known):
            raise ConfigError(f"decode takes a mapping with z0 and any others up to {known[-1]}")

        def choose(index: int, block: TopDown, x: Tensor, prior: Gaussian) -> Tensor:
            return latent.get(f"z{index}", prior[0])

        return self._mean(self.decoder(len(latent["z0"]), self._classes(condition), choose))

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the decoded posterior means, in the view."""
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
        noise = generator("log_prob", seed, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            maps = self.encoder(self._centred(x))
            rows = max(1, _VALUES // max(a[0].numel() for a in maps))
            total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
            for start in range(0, samples, max(1, rows // max(len(x), 1))):
                s = min(max(1, rows // max(len(x), 1)), samples - start)
                weights = self._log_weights(x, maps, condition, s, noise)
                total = torch.logaddexp(total, weights.double().logsumexp(1))
        self.train(was_training)
        detail = "ELBO" if samples == 1 else f"IWAE({samples})"
        if self.spec.domain == "unit" and self.spec.levels > 2:
            detail += ", mean over binarisations of the gray levels"
        return LogProb(
            nats=total - math.log(samples),
            kind="bound",
            measure="discrete",
            dims=self.spec.dims,
            detail=detail,
        )

    def _log_weights(
        self,
        x: Tensor,
        maps: list[Tensor],
        condition: Tensor | None,
        s: int,
        noise: torch.Generator,
    ) -> Tensor:
        """Return log p(x, z) - log q(z|x) of s draws z ~ q(z|x) of each sample, (b, s)."""
        b = len(x)
        maps = [a.repeat_interleave(s, 0) for a in maps]
        ratio = torch.zeros(b * s, device=x.device)

        def choose(index: int, block: TopDown, x: Tensor, prior: Gaussian) -> Tensor:
            nonlocal ratio
            posterior = block.q(x, maps[block.level])
            eps = torch.randn(posterior[0].shape, generator=noise, device=x.device)
            z = reparameterised(posterior, eps)
            difference = log_normal(z, *prior) - log_normal(z, *posterior)
            ratio = ratio + difference.flatten(1).sum(1)
            return z

        rows = None if condition is None else condition.repeat_interleave(s)
        output = self.decoder(b * s, rows, choose)
        return (self._log_likelihood(x.repeat_interleave(s, 0), output) + ratio).reshape(b, s)

    @torch.no_grad()
    def bits_back(
        self,
        rows: int,
        choose: ChooseLatent,
        x: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> LevelCdf:
        """Take the blocks' latent maps from `choose`; return the probabilities of the levels.

        Raises CapabilityError for gray levels learned as bits.
        """
        bits = self.config.likelihood == "bernoulli"
        if bits and self.spec.levels > 2:
            raise CapabilityError(
                f"this VDVAE's likelihood 'bernoulli' gives no probabilities of {self.spec}; train "
                "one with --model.likelihood logistic --model.dynamic false"
            )
        maps = None if x is None else self.encoder(self._centred(x))

        def chosen(index: int, block: TopDown, h: Tensor, prior: Gaussian) -> Tensor:
            return choose(prior, None if maps is None else block.q(h, maps[block.level]))

        output = self._cropped(self.decoder(rows, self._classes(condition), chosen))
        c, m, levels = self.spec.channels, self.config.mixtures, self.spec.levels

        def cdf(before: Tensor, edges: Tensor) -> Tensor:
            if bits:
                return bernoulli_cdf(edges, output[:, before.size(1), ..., None])
            return mixture_cdf(before, edges, output, c, m, levels)

        return cdf

    def _rows(self, condition: Tensor | None) -> Tensor | None:
        return condition if self.condition is not None else None

    def _classes(self, condition: Tensor | None) -> Tensor | None:
        if self.condition is not None and condition is None:
            raise ConfigError("this VDVAE is conditional; give the class of each sample")
        return self._rows(condition)
