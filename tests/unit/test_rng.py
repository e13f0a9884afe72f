"""Random draws as pure functions of numbers."""

from __future__ import annotations

import math

import pytest
import torch

from poiesis.rng import Draws, Noise, generator, mix


def test_mix_separates_keys():
    keys = [(a, b) for a in range(50) for b in range(50)] + [("a", 0), ("b", 0), (0,), (0, 0, 0)]
    seeds = [mix(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1)
    # Half of the bits change when one bit of the key does (an avalanche of 31.5 of 63).
    flips = [(mix(7, k) ^ mix(7, k ^ 1 << (k % 32))).bit_count() for k in range(2000)]
    assert sum(flips) / len(flips) == pytest.approx(31.5, abs=0.5)


def test_mix_is_the_published_generator():
    """Recipes in files hold seeds: other values would make other samples of them.

    mix(0) is the second output of SplitMix64 from state 0, 0x6E789E6AA1B965F4, in 63 bits.
    """
    assert mix(0) == 0x6E789E6AA1B965F4 >> 1


def test_slices_of_draws_make_up_the_whole():
    def draws(start: int, size: int) -> Draws:
        return Draws(("k", 3), total=10, start=start, size=size)

    whole, parts = draws(0, 10), [draws(0, 4), draws(4, 3), draws(7, 3)]
    for call in (
        lambda d: d.randn(2, 3),
        lambda d: d.rand(5),
        lambda d: d.randint(1000),
        lambda d: d.randn(2, 3),
    ):
        assert torch.equal(call(whole), torch.cat([call(part) for part in parts]))
    assert not torch.equal(draws(0, 10).randn(2), whole.randn(2))
    assert sorted(draws(2, 5).randperm().tolist()) == list(range(5))


def test_draws_have_the_right_distribution():
    draws = Draws(("distribution",), total=100_000)
    x, u, k = draws.randn(), draws.rand(), draws.randint(10)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(u.std()) == pytest.approx(1 / math.sqrt(12), abs=0.01)
    torch.testing.assert_close(torch.bincount(k) / 1e5, torch.full((10,), 0.1), atol=0.01, rtol=0)
    assert abs(float(torch.corrcoef(torch.stack((x, u)))[0, 1])) < 0.02


def test_a_samples_noise_depends_on_its_index_alone():
    together = Noise(5, range(4))
    a, b = together.randn(3), together.rand(2)
    alone = Noise(5, [2])
    assert torch.equal(alone.randn(3)[0], a[2])
    assert torch.equal(alone.rand(2)[0], b[2])
    assert not torch.equal(Noise(6, [2]).randn(3)[0], a[2])
    assert len(together) == 4
    # Neighbouring samples and seeds are as unlike as any others.
    many = torch.cat([Noise(seed, range(50)).randn(200) for seed in range(4)])
    correlations = torch.corrcoef(many) - torch.eye(200)
    assert float(correlations.abs().max()) < 0.45  # 6 standard errors of 1/sqrt(200)


def test_generators_leave_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=generator("x", 1))
    Noise(0, range(3)).randint(9, 2)
    Draws((0,), total=3).randn(2)
    assert torch.equal(torch.get_rng_state(), before)
