"""Metrics against closed forms, analytic nulls and an independent matrix square root."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from poiesis.errors import ConfigError, DataError
from poiesis.metrics import (
    Estimate,
    density_coverage,
    expected_coverage,
    fid,
    frechet_distance,
    inception_score,
    kid,
    mean_estimate,
    precision_recall,
)
from poiesis.metrics.distances import neighbour_radii, squared_distances
from poiesis.metrics.fid import _congruence


def normal(n, d, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def fid_by_sqrtm(x, y):
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = sqrtm(cov_x @ cov_y).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)


# -- FID ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 7, 64])
def test_frechet_of_shifted_equal_gaussians_is_the_squared_shift(d):
    cov = np.cov(normal(200, d).T).reshape(d, d)
    value = frechet_distance(np.zeros(d), cov, np.ones(d), cov)
    assert value == pytest.approx(d, abs=1e-9)


def test_frechet_of_diagonal_gaussians():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0])
    value = frechet_distance(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b))
    assert value == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-12)


def test_frechet_takes_a_singular_first_covariance():
    a, b = np.array([1.0, 0.0]), np.array([1.0, 4.0])
    value = frechet_distance(np.zeros(2), np.diag(a), np.zeros(2), np.diag(b))
    assert value == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 20), (40, 60, 20), (30, 100, 50)])
def test_fid_agrees_with_the_matrix_square_root(n, m, d):
    mix = normal(d, d, 5)
    x, y = normal(n, d, 1) @ mix, normal(m, d, 2, 1.3, 0.2) @ mix
    assert fid(x, y).value == pytest.approx(fid_by_sqrtm(x, y), rel=1e-6)


def test_fid_with_fewer_samples_than_dims_is_that_of_the_padded_problem():
    # Rotating and zero-padding changes no distance; 20 dims with 30 samples solve it directly.
    x, y = normal(30, 20, 1), normal(30, 20, 2, 1.5)
    rotation = np.linalg.qr(normal(100, 100, 3))[0][:20]
    assert fid(x @ rotation, y @ rotation).value == pytest.approx(fid(x, y).value, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero_and_moments_agree():
    x, y = normal(100, 8, 1), normal(100, 8, 2, 2.0)
    assert abs(fid(x, x).value) < 1e-9
    moments = (x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert fid(x, y).value == pytest.approx(frechet_distance(*moments), rel=1e-9)


def test_fid_survives_dead_features():
    x, y = normal(100, 8, 1), normal(100, 8, 2, 2.0)
    padded = [np.concatenate([v, np.zeros((100, 3))], 1) for v in (x, y)]
    assert fid(*padded).value == pytest.approx(fid(x, y).value, rel=1e-9)


def test_fid_contributions_are_its_derivatives_by_sample_weight():
    x, y = normal(60, 5, 1), normal(50, 5, 2, 1.4, 0.3)

    def weighted(weights):
        w = weights / weights.sum()
        mean = w @ x
        cov = (x - mean).T @ ((x - mean) * w[:, None]) * len(x) / (len(x) - 1)
        return frechet_distance(mean, cov, y.mean(0), np.cov(y.T))

    part = fid(x, y).parts[0]
    for i in (0, 17, 59):
        step = np.zeros(60)
        step[i] = 1e-5
        slope = (weighted(np.ones(60) + step) - weighted(np.ones(60) - step)) / 2e-5
        assert slope * 60 == pytest.approx(part[i] - part.mean(), rel=1e-4, abs=1e-6)


def test_fid_interval_is_as_wide_as_repeated_experiments():
    values, errors = [], []
    for seed in range(40):
        e = fid(normal(400, 6, 2 * seed), normal(400, 6, 2 * seed + 1, 1.3, 0.2))
        values.append(e.value)
        low, high = e.interval(seed=seed, resamples=300)
        errors.append((high - low) / (2 * 1.96))
    assert 0.8 < np.mean(errors) / np.std(values) < 1.4


# -- KID and Inception Score -------------------------------------------------------------------


def test_kid_is_the_double_sum_of_its_definition():
    x, y = normal(12, 4, 1), normal(9, 4, 2)

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    within = [
        np.mean([kernel(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j])
        for v in (x, y)
    ]
    expected = sum(within) - 2 * np.mean([[kernel(a, b) for b in y] for a in x])
    value = kid(x[:9], y).value
    assert kid(x, y, subsets=400, subset_size=12).value == pytest.approx(expected, abs=0.3)
    again = kid(x[:9], y, seed=5).value
    assert value == again  # one subset holds everything
    within[0] = np.mean([kernel(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    expected = sum(within) - 2 * np.mean([[kernel(a, b) for b in y] for a in x[:9]])
    assert value == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_and_seeded():
    same = [kid(normal(60, 8, 2 * s), normal(60, 8, 2 * s + 1)).value for s in range(100)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 10
    x, y = normal(300, 8, 1), normal(300, 8, 2, 1.2)
    small = [kid(x, y, subset_size=50, seed=s).value for s in (0, 0, 1)]
    assert small[0] == small[1] != small[2]
    assert np.mean(small) == pytest.approx(kid(x, y).value, rel=0.2)


def test_inception_score_bounds_are_reached():
    sure = 50 * torch.eye(10).repeat(100, 1)
    assert 9.3 < inception_score(sure).value < 10  # splits are not quite balanced
    assert inception_score(sure, splits=1).value == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(1000, 10)).value == pytest.approx(1)
    one_class = 50 * torch.eye(10)[:1].repeat(1000, 1)
    assert inception_score(one_class).value == pytest.approx(1)


def test_inception_score_of_half_certain_pairs():
    # Each sample is torn between two of four classes: H(y) = ln 4, H(y|x) = ln 2.
    logits = torch.full((400, 4), -50.0)
    for i in range(400):
        logits[i, [i % 4, (i + 1) % 4]] = 0
    assert inception_score(logits, splits=1).value == pytest.approx(2, rel=1e-9)


# -- neighbours --------------------------------------------------------------------------------


def test_distances_are_exact_and_copies_are_at_zero():
    x, y = normal(50, 30, 1, 1e-3, 1e3), normal(40, 30, 2, 1e-3, 1e3)
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    squares = squared_distances(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    exact = ((x[:, None] - y) ** 2).sum(2)
    np.testing.assert_allclose(squares, exact, rtol=1e-9)
    twice = torch.from_numpy(np.concatenate([x, x]))
    assert (neighbour_radii(twice, 1) == 0).all()


def test_precision_recall_of_known_layouts():
    grid = np.array([[i, j] for i in range(20) for j in range(20)], float)
    precision, recall = precision_recall(grid, grid + 0.1)
    assert precision.value == recall.value == 1
    precision, recall = precision_recall(grid, grid + 1000)
    assert precision.value == recall.value == 0
    # Half the ground: everything generated is real, half of the real is missing (one column of
    # 20 beyond the edge is within the third neighbour's distance, 1).
    precision, recall = precision_recall(grid, grid[grid[:, 0] < 10])
    assert precision.value == 1
    assert recall.value == pytest.approx(220 / 400)


@pytest.mark.parametrize(("n", "m", "d"), [(1500, 1500, 4), (1500, 500, 16)])
def test_density_and_coverage_null(n, m, d):
    runs = [density_coverage(normal(n, d, 2 * s), normal(m, d, 2 * s + 1)) for s in range(4)]
    assert np.mean([r[0].value for r in runs]) == pytest.approx(1, abs=0.06)
    assert np.mean([r[1].value for r in runs]) == pytest.approx(expected_coverage(n, m), abs=0.012)


def test_expected_coverage_value():
    assert expected_coverage(10_000, 10_000) == pytest.approx(0.96877, abs=5e-6)


def test_copies_of_few_samples_lose_recall_and_coverage():
    x, y = normal(1000, 8, 1), normal(1000, 8, 2)
    copied = np.repeat(y[:50], 20, 0)
    assert precision_recall(x, copied)[1].value < 0.1
    assert density_coverage(x, copied)[1].value < 0.4


# -- intervals and errors ----------------------------------------------------------------------


def test_interval_of_a_mean_is_the_normal_one():
    values = normal(400, 1, 3)[:, 0]
    estimate = mean_estimate(values)
    low, high = estimate.interval(resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.006)
    assert high == pytest.approx(values.mean() + half, abs=0.006)
    assert estimate.interval() == estimate.interval()
    narrow = estimate.interval(0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_stays_in_the_range_of_the_metric():
    low, high = Estimate(value=0.99, parts=(normal(30, 1)[:, 0],), low=0, high=1).interval()
    assert 0 <= low < high == 1


@pytest.mark.parametrize("metric", [fid, kid, precision_recall, density_coverage])
def test_unfit_features_give_one_line(metric):
    good = normal(20, 4)
    bad = good.copy()
    bad[3, 1] = math.nan
    with pytest.raises(DataError, match="1 of 20 generated samples have non-finite"):
        metric(good, bad)
    with pytest.raises(DataError, match="4 real but 3 generated"):
        metric(good, good[:, :3])
    with pytest.raises(DataError, match=r"shape \(20,\)"):
        metric(good[:, 0], good)
    with pytest.raises(DataError, match="1 real samples"):
        metric(good[:1], good)


def test_options_out_of_bounds():
    x = normal(10, 2)
    with pytest.raises(DataError, match="use more than 10"):
        precision_recall(x, x, k=10)
    with pytest.raises(ConfigError, match="k = 0"):
        density_coverage(x, x, k=0)
    with pytest.raises(ConfigError, match="subsets = 0"):
        kid(x, x, subsets=0)
    with pytest.raises(DataError, match="10 samples in 20 splits"):
        inception_score(x, splits=20)
    with pytest.raises(ConfigError, match="level = 2"):
        mean_estimate(x[:, 0]).interval(2)


@pytest.mark.parametrize("size", [5, 256, 700])
def test_the_triangular_product_is_the_whole_one(size):
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=source, dtype=torch.float64)
    low, c = torch.linalg.cholesky(a @ a.T + torch.eye(size)), b.T @ b
    torch.testing.assert_close(_congruence(low, c).tril(), (low.T @ c @ low).tril())
