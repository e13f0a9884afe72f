"""NDB, the birthday test, Vendi, discriminator overfitting: closed forms and nulls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from poiesis.errors import ConfigError, DataError
from poiesis.metrics.birthday import (
    birthday_support,
    duplicate_threshold,
    duplicates,
    effective_support,
)
from poiesis.metrics.ndb import bin_counts, compare_bins, fit_bins, ndb
from poiesis.metrics.overfitting import (
    separation,
    separation_error,
    sign_overfitting,
    validation_overfitting,
)
from poiesis.metrics.vendi import vendi, vendi_of_kernel


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- Vendi ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7, 40])
def test_copies_count_once_and_orthogonal_samples_n_times(n):
    assert vendi(torch.ones(n, 5)) == pytest.approx(1)
    assert vendi(torch.eye(n)) == pytest.approx(n)
    assert vendi_of_kernel(torch.ones(n, n)) == pytest.approx(1)
    assert vendi_of_kernel(torch.eye(n)) == pytest.approx(n)
    assert vendi(torch.arange(n).float()[:, None] * 1e3, bandwidth=1.0) == pytest.approx(n)


def test_vendi_of_unequal_groups_is_the_exponential_of_their_entropy():
    shares = [0.5, 0.25, 0.25]
    rows = torch.eye(3).repeat_interleave(torch.tensor([8, 4, 4]), 0)
    expected = math.exp(stats.entropy(shares))
    assert vendi(rows) == pytest.approx(expected)
    assert vendi(rows * torch.rand(16, 1, generator=source()).add(0.1)) == pytest.approx(expected)
    assert vendi(100 * rows, bandwidth=1.0) == pytest.approx(expected)


def test_vendi_is_the_same_by_either_gram_matrix():
    for shape in ((30, 80), (80, 30)):
        x = torch.randn(shape, generator=source(), dtype=torch.float64)
        unit = x / x.norm(dim=1, keepdim=True)
        assert vendi(x) == pytest.approx(vendi_of_kernel(unit @ unit.T), rel=1e-9)
    # Rows of zeros are one more kind.
    assert vendi(torch.tensor([[0.0], [0.0], [1.0], [1.0]])) == pytest.approx(2)


def test_vendi_refuses_what_it_is_not_for():
    with pytest.raises(DataError, match="not square"):
        vendi_of_kernel(torch.ones(2, 3))
    with pytest.raises(DataError, match="ones on its diagonal"):
        vendi_of_kernel(2 * torch.eye(3))
    with pytest.raises(DataError, match="1 of 2 given samples have non-finite"):
        vendi(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(ConfigError, match="bandwidth"):
        vendi(torch.ones(2, 1), bandwidth=0.0)


# -- birthday ------------------------------------------------------------------------------------


def test_among_23_people_two_share_a_birthday_in_half_of_the_cases():
    days = torch.randint(365, (23 * 2000, 1), generator=source()).double()
    share, support = birthday_support(days, 23)
    assert share == pytest.approx(0.5073, abs=0.03)  # 1 - 365! / (342! 365^23)
    assert support == pytest.approx(365, rel=0.1)
    # The rule of thumb that the estimate is at a half.
    assert 23**2 / (2 * math.log(2)) == pytest.approx(support, rel=0.15)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_effective_support_of_equally_likely_things_is_their_number(n):
    draws = torch.randint(n, (2000, 1), generator=source()).double()
    assert effective_support(draws) == pytest.approx(n, rel=0.1)


def test_effective_support_of_unequal_things_is_one_over_the_sum_of_squares():
    shares = np.array([0.7, 0.1, 0.1, 0.1])
    draws = torch.multinomial(torch.tensor(shares), 3000, replacement=True, generator=source())
    expected = 1 / (shares**2).sum()
    assert effective_support(draws[:, None].double()) == pytest.approx(expected, rel=0.05)


def test_distances_are_exact_and_thresholds_are_quantiles():
    # Far from the origin, apart by 1e-3: float32 sums of squares would not tell them apart.
    x = 1e4 + torch.arange(10, dtype=torch.float64)[:, None] * 1e-3
    assert duplicates(x, 0.0) == 0
    assert duplicates(x, 1.001e-3) == 9
    assert duplicates(x, 1.0) == 45
    assert effective_support(x, 0.0) == math.inf
    assert birthday_support(x, 5, 0.0) == (0.0, math.inf)
    assert birthday_support(x, 5, 1.0) == (1.0, 1.0)
    assert duplicate_threshold(x, 9 / 45) == pytest.approx(1e-3)
    assert duplicate_threshold(x, 1.0) == pytest.approx(9e-3)
    y = torch.randn(300, 4, generator=source(), dtype=torch.float64)
    assert effective_support(y, duplicate_threshold(y, 0.01)) == pytest.approx(100, rel=0.01)
    with pytest.raises(DataError, match="10 samples make no batch of 11"):
        birthday_support(x, 11)


# -- bins ----------------------------------------------------------------------------------------


def test_k_means_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]], dtype=torch.float64)
    x = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=source())
    found = fit_bins(x, 4, seed=3)
    order = torch.cdist(centres, found).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(found[order], centres, atol=0.1, rtol=0)
    assert bin_counts(found, x).tolist() == [50] * 4
    assert torch.equal(fit_bins(x, 4, seed=3), found)
    # More bins than different samples: some stay empty, none is lost.
    few = fit_bins(torch.zeros(9, 1), 3)
    assert bin_counts(few, torch.zeros(9, 1)).sum() == 9
    with pytest.raises(DataError, match="9 real samples can't be cut into 10 bins"):
        fit_bins(torch.zeros(9, 1), 10)


def test_equal_distributions_differ_in_alpha_of_the_bins():
    """The two-proportion test holds its level where bins are fixed: averaged over many pairs."""
    found = []
    for k in range(40):
        draws = torch.randn(3000, 2, generator=source(k), dtype=torch.float64)
        centres = fit_bins(draws[:1000], 50, seed=k)
        real, other = bin_counts(centres, draws[1000:2000]), bin_counts(centres, draws[2000:])
        found.append(compare_bins(real, other, alpha=0.05))
    assert np.mean([r.different for r in found]) == pytest.approx(0.05, abs=0.012)
    assert np.mean([r.lost for r in found]) < 0.002


def test_the_two_proportion_z_is_the_textbooks():
    """A 2x2 table's chi-squared without correction is that z squared."""
    real, generated = torch.tensor([30, 70]), torch.tensor([50, 60])
    table = [[30, 70], [50, 60]]
    p = float(stats.chi2_contingency(table, correction=False).pvalue)
    assert compare_bins(real, generated, alpha=p * 1.001).different == 1
    assert compare_bins(real, generated, alpha=p * 0.999).different == 0
    assert compare_bins(real, real).different == 0


def test_bins_are_lost_where_drawn_less_than_half_as_often():
    real = torch.full((10,), 1000)
    # Of 7,650: 3.9 and 4.6% where 10% of the real ones are, and none.
    generated = torch.tensor([1000] * 7 + [300, 350, 0])
    assert compare_bins(real, generated * 10).lost == pytest.approx(0.3)
    assert compare_bins(real * 10, generated).lost == pytest.approx(0.2)
    # At the bound itself, the level is kept: in a fortieth of the cases.
    draws = torch.distributions.Multinomial(900, torch.tensor([0.1, 0.9]))
    other = torch.distributions.Multinomial(500, torch.tensor([0.05, 0.95]))
    torch.manual_seed(0)
    a, b = draws.sample((2000,)), other.sample((2000,))
    rate = np.mean([compare_bins(x, y).lost > 0 for x, y in zip(a, b, strict=True)])
    assert rate == pytest.approx(0.025, abs=0.012)


def test_missing_half_of_the_clusters_is_seen():
    centres = torch.arange(20, dtype=torch.float64)[:, None] * 10
    x = centres.repeat(100, 1) + torch.randn(2000, 1, generator=source(), dtype=torch.float64)
    found = ndb(x, x[x[:, 0] < 95], bins=20)
    assert found.different > 0.9  # half of the bins empty, the other half with twice the share
    assert found.lost == pytest.approx(0.5, abs=0.03)


# -- discriminators ------------------------------------------------------------------------------


def test_overfitting_heuristics_at_their_ends():
    assert sign_overfitting(torch.tensor([3.0, 0.1, 2.0])) == 1
    assert sign_overfitting(torch.tensor([3.0, -0.1, 2.0, -5.0])) == 0
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([-1.0, -3.0])
    assert validation_overfitting(real, real, fake) == 0
    assert validation_overfitting(real, fake, fake) == 1
    assert validation_overfitting(real, torch.tensor([0.5]), fake) == 0.5
    assert math.isnan(validation_overfitting(real, fake, real))


def test_separation_is_the_area_under_the_curve_with_its_null():
    high = torch.randn(300, generator=source()).add(0.7).mul(4).round()
    low = torch.randn(200, generator=source(1)).mul(4).round()  # with ties
    truth = roc_auc_score([1] * 300 + [0] * 200, torch.cat((high, low)).numpy())
    assert separation(high, low) == pytest.approx(truth, abs=1e-12)
    assert separation(torch.ones(3), torch.zeros(2)) == 1
    assert separation(torch.ones(3), torch.ones(2)) == 0.5
    pairs = [torch.randn(2, 100, generator=source(k)) for k in range(400)]
    spread = np.std([separation(a, b) for a, b in pairs])
    assert spread == pytest.approx(separation_error(100, 100), rel=0.1)
    with pytest.raises(DataError, match="need one dimension"):
        separation(torch.ones(2, 2), torch.ones(2))
