"""Likelihoods of pixels: Bernoulli, and mixtures of discretised logistics.

Salimans et al., PixelCNN++, arXiv:1701.05517, sec. 2.1-2.2.

Shape letters: b batch, c channels, h height, k values per pixel, m mixture components, w width.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = [
    "bernoulli_cdf",
    "log_bernoulli",
    "log_logistic",
    "log_mixture",
    "logistic_cdf",
    "mixture_cdf",
    "mixture_mean",
    "mixture_sample",
    "values_per_pixel",
]

Parts = tuple[Tensor, Tensor, Tensor, dict[tuple[int, int], Tensor]]


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-probability of bits x (b, …), summed over all but b: (b,), in nats.

    logits: those of a 1, of x's shape and type. Gray levels of x in [0, 1] give the mean over the
    bits drawn with these probabilities. Has no second derivative.
    """
    return _LogBernoulli.apply(x, logits)  # pyright: ignore[reportReturnType]


class _LogBernoulli(torch.autograd.Function):
    """sum of x l - log(1 + e^l), in half the passes over memory of torch's cross-entropy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits)
        return torch.mul(x, logits).sub_(F.softplus(logits)).flatten(1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, logits = ctx.saved_tensors
        own = gradient.view(-1, *[1] * (x.ndim - 1))
        by_x = own * logits if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None
        p = logits.sigmoid()
        return by_x, torch.sub(x, p, out=p).mul_(own)


def log_logistic(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Return the log-probability of level x in [-1, 1] under a discretised logistic, elementwise.

    A level owns the bin of half-width 1/(levels - 1) around it, the outer two the tails besides
    (PixelCNN++, arXiv:1701.05517, eq. 2). log_scale is kept above -7, as there.
    """
    inverse = (-log_scale.clamp(min=-7)).exp()
    half = 1 / (levels - 1)
    upper = (x - mean + half) * inverse
    lower = (x - mean - half) * inverse
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no cancellation anywhere.
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + (-torch.expm1(-2 * half * inverse)).log()
    value = torch.where(x > 1 - half, F.logsigmoid(-lower), inside)
    return torch.where(x < half - 1, F.logsigmoid(upper), value)


def bernoulli_cdf(edges: Tensor, logits: Tensor) -> Tensor:
    """Return the probability of a bit below an edge, 0…2, where `logits` are those of a 1."""
    cdf = (-logits).sigmoid().expand(torch.broadcast_shapes(edges.shape, logits.shape))
    return cdf.masked_fill(edges <= 0, 0.0).masked_fill(edges >= 2, 1.0)


def logistic_cdf(edges: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Return the probability of a level below an edge, 0…levels, under `log_logistic`.

    edges: whole numbers, broadcast against mean and log_scale: 0 gives 0 and `levels` gives 1.
    """
    at = (2 * edges - 1).to(mean.dtype) / (levels - 1) - 1
    cdf = ((at - mean) * (-log_scale.clamp(min=-7)).exp()).sigmoid()
    return cdf.masked_fill(edges <= 0, 0.0).masked_fill(edges >= levels, 1.0)


def values_per_pixel(channels: int, mixtures: int) -> int:
    """Return k, the values that describe a pixel's distribution: m (1 + 2 c + c (c - 1) / 2)."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def _mixture(
    values: Tensor, channels: int, mixtures: int
) -> tuple[Tensor, Tensor, Tensor, dict[tuple[int, int], Tensor]]:
    """Split values (b, k, h, w) into log-weights (b, m, h, w), means and log-scales
    (b, m, c, h, w), and the share (b, m, h, w) of channel j in the mean of channel i > j."""
    b, _, h, w = values.shape
    parts = values.reshape(b, mixtures, -1, h, w)
    logits, mean, log_scale, rest = parts.split(
        (1, channels, channels, parts.size(2) - 1 - 2 * channels), dim=2
    )
    pairs = itertools.combinations(range(channels), 2)
    shares = {(i, j): rest[:, :, n].tanh() for n, (j, i) in enumerate(pairs)}
    return logits[:, :, 0].log_softmax(1), mean, log_scale, shares


def log_mixture(x: Tensor, values: Tensor, mixtures: int, levels: int) -> Tensor:
    """Return log p of pixels x (b, c, h, w) in [-1, 1], (b, h, w), under mixtures of logistics.

    values: (b, m (1 + 2 c + c (c - 1) / 2), h, w). Within a component the mean of a channel is
    linear in the channels before it (PixelCNN++, arXiv:1701.05517, eq. 2-3), for any number of
    them. levels: how many values of x there are; their probabilities sum to 1.
    """
    c = x.size(1)
    log_weight, mean, log_scale, shares = _mixture(values, c, mixtures)
    total = log_weight
    for i in range(c):
        centre = mean[:, :, i]
        for j in range(i):
            centre = centre + shares[i, j] * x[:, None, j]
        total = total + log_logistic(x[:, None, i], centre, log_scale[:, :, i], levels)
    return total.logsumexp(1)


def mixture_cdf(
    before: Tensor, edges: Tensor, values: Tensor, channels: int, mixtures: int, levels: int
) -> Tensor:
    """Return the probability (b, h, w, e) of a level below an edge, given the channels before.

    It is that of channel i under the mixtures that `log_mixture` describes. before: the channels
    up to i, (b, i, h, w) in [-1, 1]. edges: 0…levels, int64 (b, h, w, e) or (e,).
    """
    log_weight, mean, log_scale, shares = _mixture(values, channels, mixtures)
    i = before.size(1)
    for n in range(i + 1):
        centre = mean[:, :, n]
        for j in range(n):
            centre = centre + shares[n, j] * before[:, None, j]
        if n < i:
            # What the channels before say about the component (Bayes).
            seen = log_logistic(before[:, None, n], centre, log_scale[:, :, n], levels)
            log_weight = log_weight + seen
    weight = log_weight.softmax(1)
    total = torch.zeros((), device=values.device)
    for k in range(mixtures):  # one after another: the whole would be large
        below = logistic_cdf(edges, centre[:, k, ..., None], log_scale[:, k, i, ..., None], levels)
        total = total + weight[:, k, ..., None] * below
    return total


def mixture_mean(values: Tensor, channels: int, mixtures: int) -> Tensor:
    """Return the mean (b, c, h, w) in [-1, 1] of the mixtures that `log_mixture` describes."""
    log_weight, mean, _, shares = _mixture(values, channels, mixtures)
    means: list[Tensor] = []
    for i in range(channels):
        centre = mean[:, :, i]
        for j in range(i):
            centre = centre + shares[i, j] * means[j]
        means.append(centre.clamp(-1, 1))
    return torch.stack([(log_weight.exp() * m).sum(1) for m in means], 1)


def mixture_sample(values: Tensor, mixtures: int, levels: int, choice: Tensor, u: Tensor) -> Tensor:
    """Draw pixels (b, c, h, w) in [-1, 1] from the mixtures that `log_mixture` describes.

    choice (b, 1, h, w) and u (b, c, h, w): uniform in [0, 1), for the component and the channels.
    """
    c = u.size(1)
    log_weight, mean, log_scale, shares = _mixture(values, c, mixtures)
    cdf = log_weight.exp().cumsum(1)
    at = (choice * cdf[:, -1:] >= cdf).sum(1, keepdim=True).clamp(max=mixtures - 1)
    u = u.clamp(1e-5, 1 - 1e-5)
    bins = levels - 1
    pixels: list[Tensor] = []
    for i in range(c):
        centre = mean[:, :, i].gather(1, at)[:, 0]
        for j in range(i):
            centre = centre + shares[i, j].gather(1, at)[:, 0] * pixels[j]
        # Scales below e^-7 count as that, as in the likelihood.
        scale = log_scale[:, :, i].gather(1, at)[:, 0].clamp(min=-7).exp()
        value = centre + scale * (u[:, i].log() - (-u[:, i]).log1p())
        pixels.append(((value.clamp(-1, 1) + 1) * bins / 2).round() * 2 / bins - 1)
    return torch.stack(pixels, 1)
