"""What a model can do beyond sampling, as protocols: it can do what it implements.

`apply` and `evaluation` are written once against these. All methods take and return tensors in
the model's view. `of` lists a class's capabilities, `require` raises CapabilityError and names the
models that can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from poiesis.errors import CapabilityError
from poiesis.rng import Noise
from poiesis.spec import Grid

__all__ = [
    "CAPABILITIES",
    "BitsBack",
    "ChooseLatent",
    "Conditionals",
    "Decode",
    "Denoiser",
    "Discriminate",
    "DrawLatent",
    "Edit",
    "Encode",
    "Inpaint",
    "LevelCdf",
    "LogProb",
    "LogProbability",
    "Reconstruct",
    "Translate",
    "of",
    "require",
]


@dataclass(frozen=True, kw_only=True)
class LogProb:
    """Log-likelihoods with their kind, so that no bound is taken for an exact value.

    nats: float tensor (b,), log p per sample. kind: exact, bound (from below) or estimate.
    measure: discrete (probabilities of levels or tokens, or Bernoulli pixels) or density (of real
    values in the view's units). dims: predicted values per sample. detail: e.g. "ELBO" or
    "IWAE(500)". error: standard error of an estimate per sample (b,), if known.
    """

    nats: Tensor
    kind: Literal["exact", "bound", "estimate"]
    measure: Literal["discrete", "density"]
    dims: int
    detail: str = ""
    error: Tensor | None = None

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 p per value, shape (b,). For a density it is relative to the view's units."""
        return -self.nats / (self.dims * math.log(2))


@runtime_checkable
class Encode(Protocol):
    """Data to a structured latent."""

    def encode(self, x: Tensor, condition: Tensor | None = None) -> Any:
        """Return the latent: a tensor or a dict of named tensors, rows are samples.

        In a dict, z is what `decode` needs; without z it is all of the entries. mean and
        log_variance are those of a posterior whose prior is standard normal, z being its mean.
        """
        ...


@runtime_checkable
class Decode(Protocol):
    """A latent back to data."""

    def decode(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Return data in the model's view."""
        ...


@runtime_checkable
class DrawLatent(Protocol):
    """Latents that samples are made of, for a model that decodes but does not encode."""

    def draw_latent(self, noise: Noise) -> Tensor:
        """Return the latents (n, z), standard normal, that `decode` makes these samples of."""
        ...


@runtime_checkable
class Reconstruct(Protocol):
    """Data to its nearest expressible version."""

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return data in the model's view, deterministic."""
        ...


@runtime_checkable
class LogProbability(Protocol):
    """A likelihood, or a bound or estimate of it."""

    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 1, seed: int = 0
    ) -> LogProb:
        """Return log p(x) of each sample. samples: importance samples, where they are used."""
        ...


@runtime_checkable
class Conditionals(Protocol):
    """Next-symbol distributions, for entropy coding."""

    def conditionals(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return log-probabilities (b, t, v) of each symbol given those before it."""
        ...

    def feeder(self, condition: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return what takes new symbols (b, t) and gives logits (b, v) of the next one.

        It remembers those before; the first call has t = 0, later ones t = 1.
        """
        ...


Gaussian = tuple[Tensor, Tensor]
"""(mean, log of the standard deviation), of one shape."""

ChooseLatent = Callable[[Gaussian, Gaussian | None], Tensor]
"""(prior, posterior if the data are known) of a latent → its value, of their shape."""

LevelCdf = Callable[[Tensor, Tensor], Tensor]
"""(pixels of the channels before, (b, i, h, w) in the view; edges, int64 (b, h, w, e) or (e,)) →
the probability (b, h, w, e) of a level of channel i below each edge, 0…levels."""


@runtime_checkable
class BitsBack(Protocol):
    """Gaussian latents and levels given them, for bits-back coding (arXiv:1901.04866)."""

    def bits_back(
        self,
        rows: int,
        choose: ChooseLatent,
        x: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> LevelCdf:
        """Take the latents one after another from `choose`; return what they say of the levels.

        A later latent's prior and posterior may depend on those before. x: the data (rows,
        *spec.shape), where they are known.
        """
        ...


@runtime_checkable
class Denoiser(Protocol):
    """The clean-data estimate of a diffusion model, whatever its training target."""

    def denoiser(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of x0. t: noise level of each row, (b,)."""
        ...


@runtime_checkable
class Edit(Protocol):
    """Variants of given data."""

    def edit(
        self,
        x: Tensor,
        noise: Noise,
        condition: Tensor | None = None,
        options: Any = None,
        *,
        strength: float = 0.5,
    ) -> Tensor:
        """Return variants of x, the less like it the higher the strength, (0, 1]."""
        ...


@runtime_checkable
class Inpaint(Protocol):
    """Missing parts filled in."""

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        noise: Noise,
        condition: Tensor | None = None,
        options: Any = None,
        *,
        resamples: int = 5,
    ) -> Tensor:
        """Return x with what the mask covers (1) made anew; the rest (0) as it was.

        resamples: how often a step is repeated so that the two fit, where there are steps.
        """
        ...


@runtime_checkable
class Translate(Protocol):
    """Pictures of one kind made into images of another: smaller, grey, of another domain."""

    @property
    def source(self) -> Grid | None:
        """The view of the pictures that it takes; None where it did not learn to: then it can't."""
        ...

    def given(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the pictures (b, *source.shape) of images x, of which the data say y."""
        ...

    def translate(self, x: Tensor, noise: Noise, options: Any = None) -> Tensor:
        """Return images (b, *spec.shape) of pictures x (b, *source.shape)."""
        ...

    def plain(self, x: Tensor) -> Tensor:
        """Return what one would make of pictures x without a model, of the images' shape."""
        ...


@runtime_checkable
class Discriminate(Protocol):
    """How real data looks to a discriminator or critic."""

    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits (b,), higher is more real."""
        ...


CAPABILITIES: dict[str, type] = {
    "encode": Encode,
    "decode": Decode,
    "draw_latent": DrawLatent,
    "reconstruct": Reconstruct,
    "log_prob": LogProbability,
    "conditionals": Conditionals,
    "bits_back": BitsBack,
    "denoiser": Denoiser,
    "edit": Edit,
    "inpaint": Inpaint,
    "translate": Translate,
    "discriminate": Discriminate,
}


def of(model: object) -> list[str]:
    """Return the capabilities of a model or model class."""
    return [name for name in CAPABILITIES if callable(getattr(model, name, None))]


def require(model: object, capability: str) -> None:
    """Raise CapabilityError, naming models that can, unless `model` has the capability."""
    if capability in of(model):
        return
    from poiesis import registry

    able = [name for name in registry.names() if capability in of(registry.model_class(name))]
    kind = type(model).__name__
    raise CapabilityError(f"{kind} can't {capability}; models that can: {', '.join(able)}")
