"""Editing by diffusion: start from a picture instead of noise, fill in, walk back to noise."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.rng import Noise
from poiesis.sampling.diffusion import Denoise, Path, epsilon_from, posterior

__all__ = ["inpaint", "invert", "noised", "tail"]


def tail(path: Path, strength: float) -> Path:
    """Return the last share of a path's steps, at least one: where an edit begins."""
    check("strength", strength, low=0, high=1, open_low=True)
    steps = len(path.levels)
    first = steps - max(1, round(strength * steps))
    return dataclasses.replace(
        path, levels=path.levels[first:], alpha=path.alpha[first:], sigma=path.sigma[first:]
    )


def noised(path: Path, x: Tensor, noise: Noise, i: int = 0) -> Tensor:
    """Return clean data x (b, …) at point i of a path: SDEdit's start (arXiv 2108.01073)."""
    return path.alpha[i] * x + path.sigma[i] * noise.randn(*x.shape[1:])


def inpaint(
    denoise: Denoise,
    path: Path,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    noise: Noise,
    *,
    resamples: int = 1,
) -> Tensor:
    """Fill in what a mask covers, in harmony with the rest (RePaint, arXiv 2201.09865, alg. 1).

    x: noise (b, …), as a sampler takes it. known: clean data, used where mask (broadcastable) is 0.
    In every step what is known enters at that step's noise. resamples: how often a step is taken,
    each but the first after a step back towards noise, so that the two parts come to fit. The
    known values come back as they were.
    """
    check("resamples", resamples, low=1, high=1000)
    last = len(path.levels) - 1
    for i, level in enumerate(path.levels):
        alpha, sigma = path.alpha[i + 1], path.sigma[i + 1]
        a, b, small, large = posterior(path.alpha[i], path.sigma[i], alpha, sigma)
        for repeat in range(resamples if i < last else 1):
            if repeat:
                back = path.alpha[i] / path.alpha[i + 1]
                x = back * x + math.sqrt(large) * noise.randn(*x.shape[1:])
            x = a * x + b * denoise(x, level)
            if small > 0:
                x = x + math.sqrt(small) * noise.randn(*x.shape[1:])
            x = torch.where(mask > 0, x, noised(path, known, noise, i + 1).to(x))
    return x


def invert(denoise: Denoise, path: Path, x: Tensor) -> Tensor:
    """Return the noise from which `ddim` makes about x (arXiv 2010.02502, section 4.3).

    x: clean data. The path's steps are taken backwards by Euler's method, each with the estimate of
    the cleaner of its two levels; the more of them, the closer the way back comes to x.
    """
    x = path.alpha[-2] * x
    for i in range(len(path.levels) - 1, 0, -1):
        x0 = denoise(x, path.levels[i])
        eps = epsilon_from(x0, x, path.alpha[i], path.sigma[i])
        x = path.alpha[i - 1] * x0 + path.sigma[i - 1] * eps
    return x
