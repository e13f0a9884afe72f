"""PSNR, SNR and SSIM against closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from poiesis.errors import DataError
from poiesis.metrics.fidelity import psnr, snr, ssim


def pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 2, 5, 6, generator=generator)
    wanted = torch.nn.functional.interpolate(base, scale_factor=4, mode="bilinear") * 255
    noise = 20 * torch.randn(wanted.shape, generator=generator)
    return (wanted + noise).clamp(0, 255).round(), wanted.round()


def test_a_constant_error_in_decibels():
    wanted = torch.zeros(2, 1, 12, 12)
    assert psnr(wanted + 25.5, wanted).value == pytest.approx(20)
    assert psnr(wanted, wanted).value == 100
    found = torch.stack([wanted[0] + 25.5, wanted[0] + 2.55])
    assert psnr(found, wanted).value == pytest.approx(30)
    assert psnr(wanted + 1, wanted, peak=1).value == pytest.approx(0)


def test_both_agree_with_scikit_image():
    found, wanted = pictures()
    a, b = found.numpy(), wanted.numpy()
    each = [peak_signal_noise_ratio(y, x, data_range=255) for x, y in zip(a, b, strict=True)]
    assert psnr(found, wanted).value == pytest.approx(np.mean(each), rel=1e-9)
    gauss = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    maps = [
        structural_similarity(x, y, data_range=255, channel_axis=0, full=True, **gauss)[1]
        for x, y in zip(a.astype(float), b.astype(float), strict=True)
    ]
    inner = np.mean([m[:, 5:-5, 5:-5].mean() for m in maps])
    assert ssim(found, wanted).value == pytest.approx(inner, rel=1e-6)


def test_ssim_of_equal_pictures_is_one_and_small_ones_are_refused():
    found, wanted = pictures()
    assert ssim(wanted, wanted).value == pytest.approx(1)
    assert ssim(found, wanted).value < 0.95
    assert math.isclose(ssim(found, wanted).value, ssim(wanted, found).value)
    with pytest.raises(DataError, match="at least 11 px"):
        ssim(found[..., :8], wanted[..., :8])
    with pytest.raises(DataError, match="can't be compared"):
        psnr(found[:2], wanted)


def test_signal_to_noise_in_decibels():
    wanted = torch.tensor([[3.0, -3.0], [1.0, -1.0]])
    # Powers 20 and 0.2: over all rows together, not the mean of each row's ratio.
    assert snr(wanted + torch.tensor([[0.1, -0.3], [0.3, -0.1]]), wanted).value == pytest.approx(20)
    assert snr(wanted, wanted).value == 100
    assert snr(torch.zeros(2, 2), wanted).value == pytest.approx(0)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(5000, 1, 1)))
    found = snr(rows + 0.5 * torch.from_numpy(rng.normal(size=(5000, 1, 1))), rows)
    low, high = found.interval()
    assert low < 10 * math.log10(4) < high and high - low < 0.5
    with pytest.raises(DataError, match="can't be compared"):
        snr(wanted[:1], wanted)
