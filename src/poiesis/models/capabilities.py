"""What a model can do beyond sampling, as protocols: it can do what it implements.

`apply` and `evaluation` are written once against these. All methods take and return tensors in
the model's view. `of` lists a class's capabilities, `require` raises CapabilityError and names the
models that can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from poiesis.errors import CapabilityError

__all__ = [
    "CAPABILITIES",
    "Conditionals",
    "Decode",
    "Denoiser",
    "Discriminate",
    "Encode",
    "LogProb",
    "LogProbability",
    "Reconstruct",
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


@runtime_checkable
class Denoiser(Protocol):
    """The clean-data estimate of a diffusion model, whatever its training target."""

    def denoiser(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of x0. t: noise level of each row, (b,)."""
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
    "reconstruct": Reconstruct,
    "log_prob": LogProbability,
    "conditionals": Conditionals,
    "denoiser": Denoiser,
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
