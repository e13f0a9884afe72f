"""Mixtures of discretised logistics: Salimans et al., PixelCNN++, arXiv:1701.05517, sec. 2.1-2.2.

Shape letters: b batch, c channels, h height, k values per pixel, m mixture components, w width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from poiesis.models.autoencoders.vae import log_logistic

__all__ = ["log_mixture", "mixture_mean", "mixture_sample", "values_per_pixel"]

Parts = tuple[Tensor, Tensor, Tensor, dict[tuple[int, int], Tensor]]


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
