"""Noising processes in continuous time: x_t = α(t) x0 + σ(t) ε, from clean data to noise.

What a model adds to its data in training, and what a sampler walks back. Discrete schedules are in
`poiesis.sampling.diffusion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.sampling.diffusion import Path

__all__ = ["Process", "Spacing", "exploding", "preserving", "straight", "sub_preserving"]

Spacing = Literal["uniform", "logsnr", "karras"]
"""How the times of a path are chosen: even in t, even in log(α/σ), or even in (σ/α)^(1/7), which
spends more steps near the data (arXiv 2206.00364, eq. 5)."""

_RHO = 7
_NOISE = 80.0
"""σ/α that spacings by noise begin at where α reaches 0 (EDM's σ_max)."""


@dataclass(frozen=True)
class Process:
    """A process in continuous time t, t_min the cleanest level, t_max noise.

    marginal: t, any shape → (α, σ). time: λ = log(α/σ) → t.
    """

    marginal: Callable[[Tensor], tuple[Tensor, Tensor]]
    time: Callable[[float], float]
    t_min: float
    t_max: float

    def at(self, t: float) -> tuple[float, float]:
        """Return α and σ at time t."""
        alpha, sigma = self.marginal(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def path(self, steps: int, spacing: Spacing = "uniform", start: float | None = None) -> Path:
        """Choose `steps` times from `start` (default t_max) down, then clean data.

        Raises ConfigError for fewer than one step.
        """
        check("steps", steps, low=1)
        begin = self.t_max if start is None else start
        if spacing == "uniform":
            # A process whose last time is clean data must not ask the denoiser there.
            clean = self.at(self.t_min)[1] == 0
            times = torch.linspace(begin, self.t_min, steps + clean, dtype=torch.float64)[:steps]
            chosen = times.tolist()
        else:
            chosen = [begin, *(self.time(lam) for lam in self._by_noise(begin, steps, spacing)[1:])]
        points = [self.at(t) for t in chosen]
        return Path(
            chosen,
            [*(a for a, _ in points), 1.0],
            [*(s for _, s in points), 0.0],
            lambda lam: (*self.at(self.time(lam)), self.time(lam)),
        )

    def _by_noise(self, begin: float, steps: int, spacing: Spacing) -> list[float]:
        """Return λ of a path's points."""
        (a0, s0), (a1, s1) = self.at(begin), self.at(self.t_min)
        high = min(_NOISE, s0 / a0) if a0 > 0 else _NOISE
        low = max(s1 / a1, 2e-3)
        share = torch.linspace(0, 1, steps, dtype=torch.float64)
        if spacing == "logsnr":
            return (-(math.log(high) + share * (math.log(low) - math.log(high)))).tolist()
        ends = high ** (1 / _RHO), low ** (1 / _RHO)
        return (-_RHO * (ends[0] + share * (ends[1] - ends[0])).log()).tolist()


def straight() -> Process:
    """Straight lines from data to noise: α = 1 − t, σ = t (arXiv 2210.02747, 2209.03003).

    Their own time runs from noise to data; here t = 0 is data, as in every process.
    """
    return Process(
        lambda t: (1 - t, t), lambda lam: 1 / (1 + math.exp(lam)) if lam > -700 else 1.0, 0.0, 1.0
    )


def exploding(low: float = 0.002, high: float = 80.0) -> Process:
    """EDM's and the variance exploding SDE's: α = 1 and σ = t (arXiv 2206.00364, 2011.13456)."""
    return Process(lambda t: (torch.ones_like(t), t), lambda lam: math.exp(-lam), low, high)


def preserving(low: float = 0.1, high: float = 20.0, t_min: float = 1e-3) -> Process:
    """Return the variance preserving SDE: β(t) from low to high, α² + σ² = 1 (arXiv 2011.13456)."""

    def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(t, low, high)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def time(lam: float) -> float:
        # −2 log α = log(1 + e^{−2λ}), without overflow
        return _preserving_time(max(-2 * lam, 0) + math.log1p(math.exp(-2 * abs(lam))), low, high)

    return Process(marginal, time, t_min, 1.0)


def sub_preserving(low: float = 0.1, high: float = 20.0, t_min: float = 1e-3) -> Process:
    """Return the sub-VP SDE: the same α with σ = 1 − α² (arXiv 2011.13456, eq. 29)."""

    def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(t, low, high)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)

    def time(lam: float) -> float:
        # α / (1 − α²) = e^λ  ⇒  α = (sqrt(1 + 4e^{2λ}) − 1) / 2e^λ = 2e^λ / (1 + sqrt(1 + 4e^{2λ}))
        ratio = math.exp(-lam)
        return _preserving_time(2 * math.log((ratio + math.sqrt(ratio**2 + 4)) / 2), low, high)

    return Process(marginal, time, t_min, 1.0)


def _log_alpha(t: Tensor, low: float, high: float) -> Tensor:
    """−½ ∫β = −t² (β₁ − β₀)/4 − t β₀/2 (arXiv 2011.13456, eq. 33)."""
    return -(t**2) * (high - low) / 4 - t * low / 2


def _preserving_time(fall: float, low: float, high: float) -> float:
    """Return t with −2 log α(t) = fall, the positive root of t² (β₁ − β₀)/2 + t β₀ = fall."""
    return 2 * fall / (low + math.sqrt(low**2 + 2 * (high - low) * fall))
