"""Editing on a Gaussian whose denoiser, and whose conditional distribution, are known."""

import math

import pytest
import torch

from poiesis.errors import ConfigError
from poiesis.rng import Noise
from poiesis.sampling import diffusion as d
from poiesis.sampling import editing, processes, solvers

RHO = 0.8
COV = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


def gaussian(process):
    """The exact denoiser of data from N(0, COV), two values a sample."""

    def denoise(x, level):
        alpha, sigma = process.at(level)
        gain = alpha * COV @ torch.linalg.inv(alpha**2 * COV + sigma**2 * torch.eye(2).double())
        return x @ gain.T

    return denoise


@pytest.mark.parametrize("process", [processes.preserving(), processes.straight()])
def test_what_is_filled_in_fits_what_is_known(process):
    n = 2000
    noise = Noise(0, range(n))
    known = torch.full((n, 2), 1.5, dtype=torch.float64)
    mask = torch.tensor([0.0, 1.0])
    path = process.path(40, "logsnr")
    means = []
    for resamples in (1, 15):
        start = noise.randn(2).double()
        x = editing.inpaint(gaussian(process), path, start, known, mask, noise, resamples=resamples)
        assert torch.equal(x[:, 0], known[:, 0])
        means.append(float(x[:, 1].mean()))
    # E[b | a] = ρ a and Var[b | a] = 1 − ρ²; without repeats the halves do not meet.
    wanted = RHO * 1.5
    assert abs(means[1] - wanted) < abs(means[0] - wanted)
    assert means[1] == pytest.approx(wanted, abs=0.08)
    assert float(x[:, 1].std()) == pytest.approx(math.sqrt(1 - RHO**2), abs=0.08)


@pytest.mark.parametrize("process", [processes.preserving(), processes.exploding()])
def test_the_way_back_to_noise_leads_to_the_data_again(process):
    x = torch.tensor([[0.3, -1.2], [2.0, 0.4]], dtype=torch.float64)
    denoise, errors = gaussian(process), []
    for steps in (50, 100, 200):
        path = process.path(steps, "logsnr")
        z = editing.invert(denoise, path, x)
        errors.append(float((solvers.ddim(denoise, path, z) - x).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] / errors[2] == pytest.approx(4, rel=0.3)  # Euler's method: first order
    assert errors[2] < 0.1


def test_an_edit_begins_part_of_the_way():
    path = d.make_path(d.linear_schedule(100), 10, "trailing")
    assert editing.tail(path, 1) == path
    part = editing.tail(path, 0.3)
    assert part.levels == path.levels[-3:] and part.alpha == path.alpha[-4:]
    assert len(editing.tail(path, 0.001).levels) == 1
    x = torch.ones(4, 5)
    start = editing.noised(part, x, Noise(0, range(4)))
    assert float((start - part.alpha[0]).std()) == pytest.approx(part.sigma[0], rel=0.4)
    with pytest.raises(ConfigError, match=r"strength = 0 is outside \(0, 1\]"):
        editing.tail(path, 0)
