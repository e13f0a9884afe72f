"""How close pictures are to the ones they should be: PSNR and SSIM; sound and vectors: SNR.

Shape letters: n pictures, c channels, h height, w width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate, mean_estimate

__all__ = ["SMALLEST", "psnr", "snr", "ssim"]

_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
SMALLEST = _WINDOW
"""Pixels of a side that SSIM needs."""


def psnr(found: Tensor, wanted: Tensor, *, peak: float = 255.0) -> Estimate:
    """Return the mean peak signal-to-noise ratio of pictures (n, c, h, w), in dB.

    10 log10(peak² / mean squared error) of each picture; one that is exact counts as 100 dB.
    Raises DataError for different shapes.
    """
    a, b = _pair(found, wanted)
    error = (a - b).square().flatten(1).mean(1)
    value = 10 * (peak**2 / error.clamp(min=peak**2 * 1e-10)).log10()
    return mean_estimate(value, low=-math.inf, high=100)


def snr(found: Tensor, wanted: Tensor) -> Estimate:
    """Return the signal-to-noise ratio of rows (n, …) in dB, over all of them together.

    10 log10(sum of wanted² / sum of (found - wanted)²), so rows should vary about 0; one that is
    exact counts as 100 dB. Raises DataError for different shapes.
    """
    if found.shape != wanted.shape or not wanted.numel():
        shapes = f"{tuple(found.shape)} and {tuple(wanted.shape)}"
        raise DataError(f"rows of shapes {shapes} can't be compared")
    a, b = found.double().flatten(1), wanted.double().flatten(1)
    signal, noise = b.square().sum(1), (a - b).square().sum(1)
    top, bottom = float(signal.mean()), float(noise.mean())
    if bottom <= top * 1e-10:
        return Estimate(value=100.0, parts=(), low=-math.inf, high=100)
    # To first order the logarithm of a ratio of means moves with these.
    parts = 10 / math.log(10) * (signal / max(top, 1e-300) - noise / bottom)
    value = 10 * math.log10(max(top, 1e-300) / bottom)
    return Estimate(value=value, parts=(parts.numpy(),), low=-math.inf, high=100)


def ssim(found: Tensor, wanted: Tensor, *, peak: float = 255.0) -> Estimate:
    """Return the mean structural similarity of pictures (n, c, h, w), in [-1, 1].

    With the Gaussian window of 11 px and standard deviation 1.5, where it fits wholly (Wang et
    al., doi:10.1109/TIP.2003.819861, section III); channels count alike. Raises DataError for
    different shapes or pictures smaller than the window.
    """
    a, b = _pair(found, wanted)
    if min(a.shape[2:]) < _WINDOW:
        raise DataError(f"SSIM needs pictures of at least {_WINDOW} px, not {tuple(a.shape[2:])}")
    at = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    row = (-at.square() / (2 * _SIGMA**2)).exp()
    window = (row[:, None] * row / row.sum() ** 2)[None, None]

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window).unflatten(0, x.shape[:2])[:, :, 0]

    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a * mean_a
    var_b = blurred(b * b) - mean_b * mean_b
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    bottom = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    return mean_estimate((top / bottom).flatten(1).mean(1), low=-1, high=1)


def _pair(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    if found.shape != wanted.shape or found.ndim != 4:
        raise DataError(
            f"pictures of shapes {tuple(found.shape)} and {tuple(wanted.shape)} can't be compared"
        )
    return found.double(), wanted.double()
