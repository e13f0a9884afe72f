"""Averages of a run's weights of any length, made after training (post-hoc EMA).

While it trains, a run keeps two moving averages whose decay follows a power of the step, and
snapshots of both (`train.snapshots`). After step t, counted from 1, such an average weighs the
weights after step i ≤ t by exactly

    p(i) = (i^k − (i − 1)^k) / t^k,    k = γ + 1,

which is what its update, decay (1 − 1/t)^k, adds up to. The profile p keeps its shape while t
grows; its length is the standard deviation of i/t under it for t → ∞, σ_rel. An average of
another length is the sum of the snapshots whose summed profiles come nearest to its own (Karras et
al., arXiv 2312.02696, section 3 and appendix C). The factors of that sum add up to one here, so
what stood still while training stays what it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError, PoiesisWarning, RunError
from poiesis.runs import Checkpoint, Run

__all__ = [
    "FILE",
    "LENGTHS",
    "Averaged",
    "average",
    "combine",
    "exponent",
    "length_of",
    "parse",
    "profile",
]

Array = NDArray[np.float64]

LENGTHS = (0.05, 0.10)
"""Lengths σ_rel of the averages that training keeps (arXiv 2312.02696, section 3.2)."""
LONGEST = 12**-0.5
"""σ_rel of the plain mean of all steps, γ = 0."""
FILE = "averages.safetensors"
"""File of the averages in a snapshot and in a checkpoint; tensors are named LENGTH/NAME."""
PREFIX = "ema:"
"""What asks for an average of a length in the place of a checkpoint's name."""
MOST_ERROR = 0.1
"""Farthest, relative to its norm, that a profile may be from the sum that stands for it."""
_CHUNK = 1 << 16
"""Steps whose profiles are in memory at once."""


def length_of(exponent: float) -> float:
    """Return σ_rel of an average of exponent γ > −1 (arXiv 2312.02696, section 3.1)."""
    return (exponent + 1) ** 0.5 / ((exponent + 2) * (exponent + 3) ** 0.5)


def exponent(length: float) -> float:
    """Return the exponent γ ≥ 0 of an average of length σ_rel; raises ConfigError.

    The root of γ³ + 7γ² + (16 − s)γ + 12 − s with s = σ_rel⁻², which is `length_of` squared.
    """
    check("the length of an average", length, low=0, high=LONGEST, open_low=True)
    s = length**-2
    return max(0.0, float(np.roots([1, 7, 16 - s, 12 - s]).real.max()))


def profile(exponent: float, t: int, steps: Array) -> Array:
    """Return how an average after step t weighs the weights after each of `steps`, from 1 (n,)."""
    k = exponent + 1
    # (i/t)^k − ((i−1)/t)^k without the loss of digits where the two are close.
    with np.errstate(divide="ignore"):
        share = -np.expm1(k * np.log1p(-1 / steps))
    return np.where(steps <= t, (np.minimum(steps, t) / t) ** k * share, 0.0)


def combine(
    kept: Sequence[tuple[float, int]], lengths: Sequence[float], t: int
) -> tuple[Array, Array]:
    """Return the factors (m, n) of n kept averages that make those of m lengths after step t.

    kept: length and step of each. Also returns how far, relative to its norm, each profile is from
    that of its sum (m,).
    """
    n, m = len(kept), len(lengths)
    rows = [(exponent(length), end) for length, end in kept]
    rows += [(exponent(length), t) for length in lengths]
    products = np.zeros((n + m, n + m))
    for start in range(1, t + 1, _CHUNK):
        steps = np.arange(start, min(start + _CHUNK, t + 1), dtype=np.float64)
        part = np.stack([profile(gamma, end, steps) for gamma, end in rows])
        products += part @ part.T
    products /= products.max()
    gram, wanted, own = products[:n, :n], products[:n, n:], np.diag(products)[n:]
    # Least squares, the factors adding up to one (a Lagrange multiplier in the last row).
    system = np.block([[gram, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    found = np.linalg.lstsq(system, np.vstack([wanted, np.ones((1, m))]), rcond=None)[0]
    factors = found[:n].T.astype(np.float64)
    apart = own - 2 * (factors * wanted.T).sum(1) + ((factors @ gram) * factors).sum(1)
    return factors, np.sqrt(np.maximum(apart, 0) / own)


def parse(checkpoint: str) -> tuple[float, int | None] | None:
    """Return length and step of "ema:LENGTH" or "ema:LENGTH@STEP"; None for other text.

    Raises ConfigError for a length or a step that is none.
    """
    if not checkpoint.startswith(PREFIX):
        return None
    text, at, step = checkpoint.removeprefix(PREFIX).partition("@")
    try:
        length = float(text)
    except ValueError:
        raise ConfigError(f"{checkpoint!r}: {text!r} is no length; write e.g. ema:0.1") from None
    check(f"{checkpoint!r}: the length", length, low=0, high=LONGEST, open_low=True)
    if at and not step.isdecimal():
        raise ConfigError(f"{checkpoint!r}: {step!r} is no step; write e.g. ema:{text}@5000")
    return length, int(step) if at else None


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """An average of a run's weights."""

    tensors: dict[str, Tensor]
    """By name within the model; what training did not average is not among them."""
    step: int
    hash: str
    """What it was made of: its length and a SHA-256."""


def average(
    run: Run, length: float, step: int | None = None, *, base: str = "", buffers: Collection[str]
) -> Averaged:
    """Return the average of a length after the step of one of a run's snapshots, its newest.

    base: hash of the weights beside it. buffers: names of tensors that are no weights; they stay
    within the range of what the snapshots hold, so that a variance can't become negative. Tensors
    that are no floats are the last snapshot's. About one copy of the weights is in memory. Raises
    RunError without such a snapshot, or if they are too few for this length.
    """
    found = _snapshots(run, step)
    end = found[-1].step
    kept = [(own, c) for c in found for own in c.json("state.json")["lengths"]]
    factors = _factors(run, [(own, c.step) for own, c in kept], length, end)
    used = [(f, own, c) for f, (own, c) in zip(factors, kept, strict=True) if f]
    about = [length, end, base, *(c.hashes[FILE] for _, _, c in used)]
    return Averaged(
        tensors=dict(_sums(used, found[-1], buffers)),
        step=end,
        hash=f"{PREFIX}{length}:{hashlib.sha256(json.dumps(about).encode()).hexdigest()}",
    )


def _snapshots(run: Run, step: int | None) -> list[Checkpoint]:
    """Open the snapshots up to a step, oldest first, without those that are damaged."""
    paths = run.snapshots()
    if not paths:
        raise RunError(
            f"{str(run.path)!r} holds no snapshots to make an average of; train one with "
            "--train.snapshots 32"
        )
    if step is not None and step not in paths:
        known = ", ".join(map(str, paths))
        raise RunError(f"{str(run.path)!r} has no snapshot of step {step}; it has: {known}")
    found = []
    for own in sorted(paths):
        if step is not None and own > step:
            break
        try:
            found.append(Checkpoint(paths[own]))
        except RunError as error:
            if own == step:
                raise
            warnings.warn(f"{error}; doing without it", PoiesisWarning, stacklevel=4)
    if not found:
        raise RunError(f"{str(run.path)!r} holds no whole snapshot; train it again")
    return found


def _factors(run: Run, kept: Sequence[tuple[float, int]], length: float, end: int) -> list[float]:
    if (length, end) in kept:
        return [float(one == (length, end)) for one in kept]
    factors, (error,) = combine(kept, [length], end)
    if error > MOST_ERROR:
        lengths = [n / 200 for n in range(1, 58)]
        errors = combine(kept, lengths, end)[1]
        good = [one for one, far in zip(lengths, errors, strict=True) if far <= MOST_ERROR]
        raise RunError(
            f"the snapshots of {str(run.path)!r} up to step {end} make averages of lengths "
            f"{min(good):g} to {max(good):g}, not {length:g}; more of them reach farther "
            "(--train.snapshots)"
        )
    return factors[0].tolist()


def _sums(
    used: Sequence[tuple[float, float, Checkpoint]], last: Checkpoint, buffers: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each averaged tensor by name, read from the disk one at a time."""
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        paths = {c.path / FILE for c in (last, *(c for _, _, c in used))}
        files = {p: stack.enter_context(safe_open(p, framework="pt")) for p in paths}
        newest, own = files[last.path / FILE], f"{used[-1][1]:g}/"
        for key in [key for key in newest.keys() if key.startswith(own)]:  # noqa: SIM118
            name = key.removeprefix(own)
            value = newest.get_tensor(key)
            if value.is_floating_point():
                parts = [(f, files[c.path / FILE].get_tensor(f"{o:g}/{name}")) for f, o, c in used]
                total = sum(
                    (factor * part.double() for factor, part in parts),
                    torch.zeros(value.shape, dtype=torch.float64),
                )
                if name in buffers:
                    stored = torch.stack([part for _, part in parts]).double()
                    total = total.clamp(stored.amin(0), stored.amax(0))
                value = total.to(value.dtype)
            yield name, value
