"""Likelihood by the probability-flow equation (arXiv 2011.13456, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poiesis.rng import Noise
from poiesis.sampling.diffusion import Path
from poiesis.sampling.solvers import Frame, dormand_prince

__all__ = ["flow_log_likelihood"]


def flow_log_likelihood(
    denoise: Callable[[Tensor, Any], Tensor],
    path: Path,
    x: Tensor,
    *,
    noise: Noise | None = None,
    probes: int = 1,
    tolerance: float = 1e-4,
) -> tuple[Tensor, Tensor | None]:
    """Return (log p(x) in nats, standard error or None), each (b,), of x at the path's last level.

    denoise must be differentiable. noise: then the divergence is estimated with `probes` random
    signs per sample (Hutchinson), whose spread gives the error; None: it is exact, one derivative
    per value of x, for few values only. The prior is N(0, σ²) at the path's first point.
    tolerance: of the solver, see `dormand_prince`.
    """
    frame, level_at = Frame(path), path.level_at
    assert level_at is not None
    shape, dims = x.shape[1:], x[0].numel()
    places = [frame.place(path.alpha[i], path.sigma[i]) for i in (0, -2)]
    signs = None
    if noise is not None:
        draws = [noise.rand(*shape) for _ in range(probes)]
        signs = torch.stack([(draw < 0.5).to(x) * 2 - 1 for draw in draws])
    columns = dims if signs is None else probes

    def slope(state: Tensor, place: float) -> Tensor:
        y = state[:, :dims].unflatten(1, shape)
        alpha, sigma, level = level_at(frame.log_snr(place))
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            moved = frame.slope(y, denoise(y * frame.scale(alpha, sigma), level), place)
            if signs is None:
                flat = moved.flatten(1)
                parts = [
                    torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)[0].flatten(1)[:, i]
                    for i in range(dims)
                ]
            else:
                parts = [
                    (torch.autograd.grad((moved * s).sum(), y, retain_graph=True)[0] * s)
                    .flatten(1)
                    .sum(1)
                    for s in signs
                ]
        return torch.cat([moved.detach().flatten(1), torch.stack(parts, 1)], 1)

    scale = frame.scale(path.alpha[-2], path.sigma[-2])
    state = torch.cat([(x / scale).flatten(1), x.new_zeros(len(x), columns)], 1)
    state = dormand_prince(slope, state, places[1], places[0], tolerance)
    alpha, sigma = path.alpha[0], path.sigma[0]
    first = frame.scale(alpha, sigma)
    end = state[:, :dims].double() * first
    variance = sigma**2
    prior = -0.5 * (end.square().sum(1) / variance + dims * math.log(2 * math.pi * variance))
    # log p(x) = log p(y) − dims · log scale at either end, and d log p(y)/ds = −divergence.
    change = dims * (math.log(first) - math.log(scale))
    traces = state[:, dims:].double()
    divergence = traces.sum(1) if signs is None else traces.mean(1)
    error = None
    if signs is not None and probes > 1:
        error = traces.std(1) / math.sqrt(probes)
    return prior + divergence + change, error
