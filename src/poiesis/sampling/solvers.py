"""Samplers of diffusion and flow models: from noise to data along a path, one function each.

All have one signature, ``solver(denoise, path, x, noise, **options) → x``, and know a model only as
a denoiser, whatever it was trained to predict (`poiesis.sampling.diffusion`). x: (b, …) at the
path's first point, in the dtype to compute in. noise: drawn from by the stochastic ones alone.
`SOLVERS` lists them with the number of times that each calls the denoiser.

The deterministic ones solve the probability-flow equation of x_t = α x0 + σ ε, which in the
coordinates y = x/α against κ = σ/α reads dy/dκ = ε̂ (arXiv 2010.02502, eq. 14), and in
y = x/(α + σ) against r = σ/(α + σ), which also serve where α is 0, dy/dr = ε̂ − x̂0 (the straight
lines of flow matching, arXiv 2210.02747). Samplers in λ = log(α/σ) are DPM-Solver's family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.errors import ConfigError
from poiesis.rng import Noise
from poiesis.sampling.diffusion import Denoise, Path, between, epsilon_from, posterior

__all__ = [
    "SOLVERS",
    "Frame",
    "Solver",
    "adaptive",
    "ancestral",
    "ddim",
    "dormand_prince",
    "dpm_solver_pp",
    "dpm_solver_pp_sde",
    "heun",
    "unipc",
]


def ancestral(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    noise: Noise | None = None,
    *,
    variance: Literal["large", "small"] | Callable[[], Tensor] = "large",
) -> Tensor:
    """DDPM's sampler (arXiv 2006.11239, algorithm 2). x: pure noise (b, …).

    variance: large is β_t, "fixedlarge"; small is the posterior's, "fixedsmall", and then it is
    `ddim` with eta = 1. Over all T levels it is the paper's; over fewer, the same with the longer
    steps' β. A function: how far between small and large, in the log, each value's lies by the last
    call of the denoiser, of x's shape (arXiv 2102.09672).
    """
    for i, level in enumerate(path.levels):
        a, b, small, large = posterior(
            path.alpha[i], path.sigma[i], path.alpha[i + 1], path.sigma[i + 1]
        )
        x = a * x + b * denoise(x, level)
        if path.sigma[i + 1] > 0:
            assert noise is not None
            if callable(variance):
                spread: Any = between(small, large, variance().to(x)).sqrt()
            else:
                spread = math.sqrt(large if variance == "large" else small)
            x = x + spread * noise.randn(*x.shape[1:])
    return x


def ddim(
    denoise: Denoise, path: Path, x: Tensor, noise: Noise | None = None, *, eta: float = 0.0
) -> Tensor:
    """Denoising diffusion implicit sampler (arXiv 2010.02502, eq. 12 and 16).

    eta: 0 is deterministic, and then Euler's method in either of the coordinates above (for a flow,
    Euler along its velocity); 1 draws as much noise as DDPM with the posterior variance.
    """
    for i, level in enumerate(path.levels):
        alpha, sigma = path.alpha[i + 1], path.sigma[i + 1]
        x0 = denoise(x, level)
        eps = epsilon_from(x0, x, path.alpha[i], path.sigma[i])
        variance = 0.0
        if eta > 0:
            variance = posterior(path.alpha[i], path.sigma[i], alpha, sigma)[2] * eta**2
        x = alpha * x0 + math.sqrt(max(sigma**2 - variance, 0.0)) * eps
        if variance > 0:
            assert noise is not None
            x = x + math.sqrt(variance) * noise.randn(*x.shape[1:])
    return x


# -- Runge-Kutta methods --------------------------------------------------------------------------


class Frame:
    """Coordinates in which the probability-flow equation is solved: y = x / scale against a place.

    Straight paths (α + σ = 1) and those that begin at α = 0 take y = x/(α + σ) against σ/(α + σ),
    for others, such as those with α = 1 (arXiv 2206.00364), y = x/α against σ/α.
    """

    def __init__(self, path: Path) -> None:
        points = list(zip(path.alpha, path.sigma, strict=True))
        self.sum = min(path.alpha) <= 0 or all(abs(a + s - 1) < 1e-6 for a, s in points)

    def scale(self, alpha: float, sigma: float) -> float:
        """What x is divided by at a point."""
        return alpha + sigma if self.sum else alpha

    def place(self, alpha: float, sigma: float) -> float:
        """The independent variable at a point."""
        return sigma / self.scale(alpha, sigma)

    def log_snr(self, place: float) -> float:
        """λ = log(α/σ) at a place, -inf where α is 0."""
        signal = 1 - place if self.sum else 1.0
        return math.log(signal / place) if signal > 0 else -math.inf

    def slope(self, y: Tensor, x0: Tensor, place: float) -> Tensor:
        """dy/dplace from the estimate of the clean data, place > 0."""
        return (y - x0) / place


def heun(denoise: Denoise, path: Path, x: Tensor, noise: Noise | None = None) -> Tensor:
    """Heun's method, second order; the step to clean data is Euler's (arXiv 2206.00364, alg. 1).

    Two calls a step but for the last.
    """
    frame = Frame(path)
    points = list(zip(path.alpha, path.sigma, strict=True))
    y = x / frame.scale(*points[0])

    def slope(y: Tensor, i: int) -> Tensor:
        x0 = denoise(y * frame.scale(*points[i]), path.levels[i])
        return frame.slope(y, x0, frame.place(*points[i]))

    for i in range(len(path.levels)):
        length = frame.place(*points[i + 1]) - frame.place(*points[i])
        before = slope(y, i)
        guess = y + length * before
        last = i + 1 == len(path.levels)
        y = guess if last else y + length / 2 * (before + slope(guess, i + 1))
    return y * frame.scale(*points[-1])


_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
"""Coefficients of Dormand & Prince, J. Comp. Appl. Math. 6 (1980): stages, last one the fifth-order
result, and the fourth-order result that its error is judged by."""


def adaptive(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    noise: Noise | None = None,
    *,
    tolerance: float = 1e-3,
) -> Tensor:
    """Dormand and Prince's Runge-Kutta method of orders 5 and 4 with steps chosen by their error.

    tolerance: of each accepted step, absolute and relative to |y|, root mean square over a sample's
    values, the worst sample counting. Of the path only its ends matter; its last level is the
    cleanest one that the denoiser is asked at, and from there an Euler step leads to clean data.
    Raises ConfigError for a path whose levels can't be chosen freely.
    """
    if path.level_at is None:
        raise ConfigError(
            "sampler = adaptive chooses its own noise levels, which this model has not between its "
            "own; take heun, dpm-solver++ or ddim"
        )
    frame, level_at = Frame(path), path.level_at
    begin, end = (frame.place(path.alpha[i], path.sigma[i]) for i in (0, -2))

    def slope(y: Tensor, place: float) -> Tensor:
        alpha, sigma, level = level_at(frame.log_snr(place))
        return frame.slope(y, denoise(y * frame.scale(alpha, sigma), level), place)

    y = x / frame.scale(path.alpha[0], path.sigma[0])
    y = dormand_prince(slope, y, begin, end, tolerance)
    alpha, sigma = path.alpha[-1], path.sigma[-1]
    y = y + (frame.place(alpha, sigma) - end) * slope(y, end)
    return y * frame.scale(alpha, sigma)


def dormand_prince(
    slope: Callable[[Tensor, float], Tensor], y: Tensor, begin: float, end: float, tolerance: float
) -> Tensor:
    """Solve dy/ds = slope(y, s) from s = begin to end, either way; y: (b, …).

    A step is accepted where the root mean square of its error, in units of tolerance · (1 + |y|),
    is at most 1 over the values of every sample.
    """
    place, length = begin, (end - begin) / 20
    first = slope(y, place)
    while place != end:
        last = abs(length) >= abs(end - place)
        length = end - place if last else length
        slopes = [first]
        for row in _STAGES:
            slopes.append(slope(y + length * _weighted(row, slopes), place + length * sum(row)))
        better = y + length * _weighted(_STAGES[-1], slopes)
        worse = y + length * _weighted(_FOURTH, slopes)
        allowed = tolerance * (1 + torch.maximum(y.abs(), better.abs()))
        error = float(((better - worse) / allowed).flatten(1).square().mean(1).sqrt().max())
        if error <= 1:
            place, y, first = end if last else place + length, better, slopes[-1]
        length *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return y


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=False):
        if weight:
            total = total + weight * tensor
    return total


# -- DPM-Solver's family: in log(α/σ), the exponential part solved exactly -------------------------


def dpm_solver_pp(
    denoise: Denoise, path: Path, x: Tensor, noise: Noise | None = None, *, order: int = 2
) -> Tensor:
    """DPM-Solver++(2M) or (3M): one call per step (arXiv 2211.01095, algorithm 2 and appendix B).

    order: 1 (then it is `ddim`), 2 or 3. Where too few steps lie behind, and on the last step to
    clean data, whose log(α/σ) is infinite, the order is what they allow, there 1. The third-order
    term is twice that of common implementations, with which the order measured is 2.
    """
    known: list[tuple[float, Tensor]] = []
    for i, level in enumerate(path.levels):
        alpha, sigma = path.alpha[i + 1], path.sigma[i + 1]
        x0 = denoise(x, level)
        usable = order if sigma > 0 and path.alpha[i] > 0 else 1
        known = [(path.log_snr(i), x0), *known][:order] if path.alpha[i] > 0 else []
        shrink = sigma / path.sigma[i]
        # α' (1 − e^{−h}), written without the infinite h of the last step
        moved = (alpha - path.alpha[i] * shrink) * x0
        if min(usable, len(known)) > 1:
            moved = moved + alpha * _higher(known[:usable], path.log_snr(i + 1), x0)
        x = shrink * x + moved
    return x


def _higher(known: Sequence[tuple[float, Tensor]], to: float, x0: Tensor) -> Tensor:
    """Return what the first and second derivative of the estimate in λ add over a step to λ = to.

    known: (λ, estimate), the newest first, two or three of them.
    """
    here, h = known[0][0], to - known[0][0]
    decay = math.expm1(-h)
    r0 = (here - known[1][0]) / h
    d0 = (x0 - known[1][1]) / r0
    if len(known) == 2:
        return -decay / 2 * d0
    r1 = (known[1][0] - known[2][0]) / h
    d1 = (known[1][1] - known[2][1]) / r1
    bend = (d0 - d1) / (r0 + r1)
    return (decay / h + 1) * (d0 + r0 * bend) + (1 - 2 * (decay + h) / h**2) * bend


def dpm_solver_pp_sde(
    denoise: Denoise, path: Path, x: Tensor, noise: Noise | None = None
) -> Tensor:
    """SDE-DPM-Solver++(2M): as `dpm_solver_pp` of order 2 with fresh noise in every step.

    arXiv 2211.01095, section 5 and appendix. It mends errors of earlier steps, as ancestral
    sampling does, in tens of steps instead of hundreds.
    """
    last: tuple[float, Tensor] | None = None
    for i, level in enumerate(path.levels):
        alpha, sigma = path.alpha[i + 1], path.sigma[i + 1]
        x0 = denoise(x, level)
        shrink = sigma / path.sigma[i]
        # e^{−h} with h = λ' − λ, 0 on the step to clean data and from α = 0
        fall = path.alpha[i] * shrink / alpha
        moved = alpha * (1 - fall**2) * x0
        if last is not None and sigma > 0:
            h = path.log_snr(i + 1) - path.log_snr(i)
            ratio = (path.log_snr(i) - last[0]) / h
            moved = moved + alpha * (1 - fall**2) / (2 * ratio) * (x0 - last[1])
        x = shrink * fall * x + moved
        if sigma > 0:
            assert noise is not None
            x = x + sigma * math.sqrt(max(1 - fall**2, 0.0)) * noise.randn(*x.shape[1:])
        last = (path.log_snr(i), x0) if path.alpha[i] > 0 else None
    return x


def unipc(
    denoise: Denoise, path: Path, x: Tensor, noise: Noise | None = None, *, order: int = 3
) -> Tensor:
    """UniPC, a predictor whose every step is corrected by the next call (arXiv 2302.04867).

    The variant B₂ with estimates of x0 (algorithms 5 and 6). order: of the predictor, 1 to 3; the
    corrector makes it one more. One call per step. The last steps to clean data fall to lower
    orders, the very last to 1.
    """
    known: list[tuple[float, Tensor]] = []
    before: Tensor | None = None
    used, total = 1, len(path.levels)
    for i, level in enumerate(path.levels):
        x0 = denoise(x, level)
        if before is not None:
            corrected = [(path.log_snr(i), x0), *known[1:used]]
            x = _unipc_step(path, i - 1, before, known[0][1], corrected)
        first_order = path.alpha[i] <= 0 or path.sigma[i + 1] <= 0
        known = [] if path.alpha[i] <= 0 else [(path.log_snr(i), x0), *known][:order]
        left = total - i if path.sigma[-1] <= 0 else order
        used = 1 if first_order else min(order, len(known), left)
        before = None if first_order else x
        x = _unipc_step(path, i, x, x0, known[1:used])
    return x


def _unipc_step(
    path: Path, i: int, x: Tensor, x0: Tensor, others: Sequence[tuple[float, Tensor]]
) -> Tensor:
    """Return x at point i + 1 from x at point i, the estimate x0 there and (λ, estimate) elsewhere.

    The weights make the step exact for estimates that are polynomials in λ through all of the
    points (arXiv 2302.04867, eq. 5), except that one other point behind weighs one half.
    """
    alpha, sigma = path.alpha[i + 1], path.sigma[i + 1]
    shrink = sigma / path.sigma[i]
    gain = alpha - path.alpha[i] * shrink  # α' (1 − e^{−h})
    y = shrink * x + gain * x0
    if not others:
        return y
    here, h = path.log_snr(i), path.log_snr(i + 1) - path.log_snr(i)
    ratios = [(other - here) / h for other, _ in others]
    if len(others) == 1:
        weights = [0.5]
    else:
        # Side k: k! h^{k}-free φ_{k+1}, by φ_{k+1} = (φ_k − 1/k!)/(−h) from φ_1 = (e^{−h} − 1)/(−h)
        first = math.expm1(-h)
        phi, sides = first / -h - 1, []
        for k in range(1, len(others) + 1):
            sides.append(phi * math.factorial(k) / first)
            phi = phi / -h - 1 / math.factorial(k + 1)
        powers = torch.tensor([[r**k for r in ratios] for k in range(len(others))]).double()
        weights = torch.linalg.solve(powers, torch.tensor(sides).double()).tolist()
    for weight, ratio, (_, estimate) in zip(weights, ratios, others, strict=True):
        y = y + gain * weight / ratio * (estimate - x0)
    return y


@dataclass(frozen=True)
class Solver:
    """A listed sampler. calls: how often it asks the denoiser over a path of n steps, if fixed."""

    run: Callable[..., Tensor]
    calls: Callable[[int], int] | None
    options: tuple[str, ...] = ()
    """Keyword options that it takes."""
    stochastic: bool = False
    about: str = ""


def _once(steps: int) -> int:
    return steps


SOLVERS: dict[str, Solver] = {
    "ancestral": Solver(ancestral, _once, ("variance",), True, "DDPM's own, hundreds of steps"),
    "ddim": Solver(ddim, _once, ("eta",), False, "first order, with as much noise as asked"),
    "euler": Solver(ddim, _once, (), False, "ddim without noise; along a flow's velocity"),
    "heun": Solver(heun, lambda steps: 2 * steps - 1, (), False, "EDM's, second order"),
    "dpm-solver++": Solver(dpm_solver_pp, _once, ("order",), False, "10 to 20 steps do"),
    "dpm-solver++sde": Solver(dpm_solver_pp_sde, _once, (), True, "20 to 50 steps, mends errors"),
    "unipc": Solver(unipc, _once, ("order",), False, "5 to 10 steps do"),
    "adaptive": Solver(adaptive, None, ("tolerance",), False, "as many steps as it takes"),
}
