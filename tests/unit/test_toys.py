"""Toys of the plane against closed forms; modes and curves counted on samples made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.stats import kstest
from sklearn.datasets import make_moons
from torch import nn

from poiesis.data import open_data
from poiesis.data.codecs import VectorCodec
from poiesis.data.codecs.plane import Field, plane
from poiesis.data.config import DataConfig
from poiesis.data.sources.planes import ORIGIN, toy_of
from poiesis.data.toys import TOYS
from poiesis.errors import ConfigError, DataError
from poiesis.evaluation.toys import evaluate_toy
from poiesis.metrics.modes import count_modes, curve_distances, within_round
from poiesis.models.capabilities import LogProb
from poiesis.models.pictures import plane_fields, show
from poiesis.spec import Classes, Vector

N = 40_000


# -- the distributions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "spread"), [("ring", 2.0), ("grid", 8.0)])
def test_modes_have_the_moments_of_the_mixture(name, spread):
    toy = TOYS[name]
    x, label = toy.draw(N, "test")
    k, sigma = len(toy.shapes), toy.sigma
    # Ring: half of the squared radius per axis; grid: the variance of -4, -2, 0, 2, 4.
    variance = spread + sigma**2
    assert np.allclose(x.mean(0), 0, atol=4 * math.sqrt(variance / N))
    assert np.allclose(np.cov(x.T), variance * np.eye(2), atol=0.05 * variance)
    assert np.allclose(np.bincount(label, minlength=k) / N, 1 / k, atol=4 / math.sqrt(k * N))
    noise = x - toy.modes[label]
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    # Distances of round noise are Rayleigh distributed.
    distance = np.linalg.norm(noise, axis=1) / sigma
    assert kstest(distance, "rayleigh").pvalue > 1e-3
    gaps = np.linalg.norm(toy.modes[:, None] - toy.modes, axis=2) + 9 * np.eye(k)
    assert gaps.min() == pytest.approx(2.0 if name == "grid" else 4 * math.sin(math.pi / 8))


def test_moons_are_those_of_scikit_learn():
    toy = TOYS["moons"]
    x, label = toy.draw(N, "test")
    peer, own = make_moons(N, noise=toy.sigma, random_state=0)
    for k in (0, 1):
        a, b = x[label == k], peer[own == k]
        assert np.allclose(a.mean(0), b.mean(0), atol=0.03)
        assert np.allclose(np.cov(a.T), np.cov(b.T), atol=0.02)
        assert np.allclose(
            np.quantile(a, [0.1, 0.5, 0.9], 0), np.quantile(b, [0.1, 0.5, 0.9], 0), atol=0.05
        )


def test_swirl_is_a_spiral_travelled_at_one_speed():
    toy = TOYS["swirl"]
    x, label = toy.draw(N, "test")
    # One arm is the other, turned by half a circle.
    assert np.allclose(x[label == 0].mean(0), -x[label == 1].mean(0), atol=0.04)
    arm = x[label == 0]
    radius, angle = np.linalg.norm(arm, axis=1), np.arctan2(arm[:, 1], arm[:, 0])
    # r = 2 angle / 3 pi, up to whole turns and noise.
    turn = (radius * 1.5 * math.pi - angle) / math.tau
    assert np.quantile(np.abs(turn - turn.round()), 0.99) < 0.2
    # Its length up to r grows nearly as r^2 (exactly: (r sqrt(r^2 + c^2) + c^2 asinh(r / c)) / 2c).
    c = 2 / (3 * math.pi)

    def length(r):
        return (r * np.sqrt(r**2 + c**2) + c**2 * np.arcsinh(r / c)) / (2 * c)

    low, high = length(1 / 3), length(2.0)
    share = (length(1.25) - low) / (high - low)
    assert (radius < 1.25).mean() == pytest.approx(share, abs=0.01)


def test_draws_are_fixed_by_their_key():
    toy = TOYS["ring"]
    assert np.array_equal(toy.draw(50, 1)[0], toy.draw(50, 1)[0])
    assert not np.array_equal(toy.draw(50, 1)[0], toy.draw(50, 2)[0])


# -- as data sets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_data_sets_are_standardised_and_come_back(name):
    toy, data = TOYS[name], open_data(name)
    assert data.spec == Vector(features=2) and toy_of(data) is toy
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 45_000,
        "validation": 5_000,
        "test": 5_000,
    }
    assert data.condition == Classes(count=len(toy.shapes), names=toy.classes)
    x, y = data.splits["train"].fetch(torch.arange(45_000))
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(x.std(0), torch.ones(2), atol=1e-3)
    drawn, label = toy.draw(50_000, "train", 0)
    # Each row is one of those drawn, its class with it.
    distance, place = cKDTree(drawn).query(data.codec.decode(x))
    assert distance.max() < 1e-5 and len(np.unique(place)) > 44_900
    assert np.array_equal(label[place], y.numpy())
    again = open_data(name)
    assert torch.equal(again.splits["test"].x, data.splits["test"].x)
    assert again.notes == data.notes


def test_a_file_of_that_name_is_no_toy(tmp_path):
    path = tmp_path / "ring.csv"
    path.write_text("x,y\n" + "\n".join(f"{k},{k * k}" for k in range(30)))
    assert toy_of(open_data(str(path))) is None
    assert open_data("ring").notes["origin"] == ORIGIN


@pytest.mark.parametrize("option", ["label", "attributes", "drop"])
def test_options_of_tables_are_refused(option):
    with pytest.raises(ConfigError, match=f"data.{option} is for tables; grid has"):
        open_data("grid", DataConfig(**{option: "x"}))
    with pytest.raises(ConfigError, match="is for images"):
        open_data("grid", DataConfig(resize=8))


# -- counting --------------------------------------------------------------------------------------

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def test_counts_of_samples_made_by_hand():
    # Two at the first, one just inside and one just outside 3 sigma of the second, none elsewhere.
    x = [[0, 0], [0.1, 0], [10, 0.299], [10, 0.301]]
    found = count_modes(np.array(x), CENTRES, 0.1)
    assert found.counts.tolist() == [2, 1, 0, 0] and found.covered == 2
    assert found.nearest.tolist() == [2, 2, 0, 0]
    assert found.high_quality.value == 0.75
    # Nearest modes: half and half, of four: log 4 - log 2.
    assert found.kl.value == pytest.approx(math.log(2))
    low, high = found.kl.interval()
    assert 0 <= low - 1e-9 <= found.kl.value <= high + 1e-9 <= math.log(4) + 2e-9
    wider = count_modes(np.array(x), CENTRES, 0.1, within=3.1)
    assert wider.counts.tolist() == [2, 2, 0, 0]


def test_a_collapsed_a_uniform_and_a_lopsided_sample():
    one = count_modes(np.zeros((50, 2)), CENTRES, 0.1)
    assert one.covered == 1 and one.kl.value == pytest.approx(math.log(4))
    even = count_modes(CENTRES.repeat(5, 0), CENTRES, 0.1)
    assert even.covered == 4 and even.kl.value == pytest.approx(0, abs=1e-12)
    # KL of (1/2, 1/4, 1/8, 1/8) from uniform: log 4 less an entropy of 1.75 log 2.
    lopsided = count_modes(CENTRES.repeat([4, 2, 1, 1], 0), CENTRES, 0.1)
    assert lopsided.kl.value == pytest.approx(0.25 * math.log(2))
    far = count_modes(CENTRES + 1, CENTRES, 0.1)
    assert far.covered == 0 and far.high_quality.value == 0 and far.kl.value == pytest.approx(0)


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_true_samples_score_what_they_should(name):
    toy = TOYS[name]
    x, label = toy.draw(N, "test")
    found = count_modes(x, toy.modes, toy.sigma)
    k = len(toy.modes)
    assert found.covered == k
    # Round in two dimensions: 1 - exp(-9/2).
    assert found.high_quality.value == pytest.approx(0.98889, abs=0.002)
    # 2 n KL is chi-squared with k - 1 degrees of freedom.
    assert 0 < 2 * N * found.kl.value < k - 1 + 5 * math.sqrt(2 * (k - 1))
    assert (found.counts <= np.bincount(label)).all()
    assert within_round() == pytest.approx(1 - math.exp(-4.5))
    assert within_round(dims=1) == pytest.approx(0.9973002)


def test_counting_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="3 dimensions but modes of 2"):
        count_modes(np.zeros((4, 3)), CENTRES, 0.1)
    with pytest.raises(ConfigError, match="sigma"):
        count_modes(np.zeros((4, 2)), CENTRES, 0.0)
    with pytest.raises(DataError, match="non-finite"):
        count_modes(np.full((4, 2), np.nan), CENTRES, 0.1)


def test_distances_to_curves():
    line = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])
    x = np.array([[2.0, 1.0], [-3.0, 4.0], [4.0, 2.0], [5.0, 7.0], [4.5, -0.5]])
    found = curve_distances(x, [line])
    assert found.tolist() == pytest.approx([1, 5, 0, math.sqrt(17), math.sqrt(0.5)])
    two = curve_distances(x, [line, np.array([[-3.0, 4.0], [-3.0, 5.0]])])
    assert two[1] == 0 and two[0] == 1
    # About a circle of 257 corners: the difference of the radii, but for its flat pieces.
    angle = np.linspace(0, math.tau, 257)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.random.default_rng(0).normal(size=(3000, 2))
    radius = np.linalg.norm(points, axis=1)
    assert np.allclose(curve_distances(points, [circle]), abs(radius - 1), atol=1e-4)
    with pytest.raises(DataError, match="dimensions"):
        curve_distances(np.zeros((3, 3)), [line])
    with pytest.raises(DataError, match="at least 2"):
        curve_distances(x, [line[:1]])


@pytest.mark.parametrize("name", TOYS)
def test_true_rows_get_the_numbers_the_passport_calls_true(name):
    data = open_data(name)
    toy = TOYS[name]
    x = data.splits["test"].x
    found = {n.name: n for n in evaluate_toy(x, data.codec, toy, data)}
    true = {k: n.passport.settings["true"] for k, n in found.items()}
    good = found["high_quality"]
    assert good.value == pytest.approx(true["high_quality"], abs=0.006)
    assert good.passport.n_generated == 5000 and good.passport.settings["within"] == 3
    if toy.modes is None:
        # Ends of a curve add a little: there the noise along it counts too.
        assert found["curve_distance"].value == pytest.approx(true["curve_distance"], rel=0.04)
    else:
        assert found["modes_covered"].value == true["modes_covered"] == len(toy.modes)
        assert found["modes_covered"].unit == f"of {len(toy.modes)}"
        assert found["mode_kl"].value == pytest.approx(true["mode_kl"], rel=0.9)
    shifted = {n.name: n for n in evaluate_toy(x + 1, data.codec, toy, data)}
    assert shifted["high_quality"].value < 0.6


# -- pictures --------------------------------------------------------------------------------------

CODEC = VectorCodec(columns=("x", "y"), mean=(1.0, -2.0), std=(2.0, 0.5), decimals=(6, 6))


class Known(nn.Module):
    """Standard normal in its view, by class shifted to the right; its discriminator likes x > 0."""

    spec = Vector(features=2)
    device = torch.device("cpu")

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.condition = Classes(count=classes) if classes else None

    def default_condition(self, first, n):
        return torch.arange(first, first + n) % self.condition.count

    def log_prob(self, x, condition=None, *, samples=1, seed=0):
        assert not self.training
        centre = torch.zeros(len(x)) if condition is None else 2.0 * condition
        gap = x - torch.stack([centre, torch.zeros(len(x))], 1)
        nats = -0.5 * gap.square().sum(1) - math.log(math.tau)
        return LogProb(nats=nats, kind="exact", measure="density", dims=2)

    def discriminate(self, x, condition=None):
        return x[:, 0] if condition is None else x[:, 0] * (1 - 2 * condition)


def test_fields_are_in_the_units_of_the_user():
    real, density = plane_fields(Known(), CODEC)
    rows = np.array([[1.0, -2.0], [3.0, -2.0], [-1.0, -1.5]])
    assert real.values(rows).tolist() == pytest.approx([0, 1, -1])
    # The density integrates to one over the user's plane, not over the standardised one.
    ticks = np.linspace(-7, 9, 200), np.linspace(-4, 0, 200)
    grid = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
    cell = (ticks[0][1] - ticks[0][0]) * (ticks[1][1] - ticks[1][0])
    assert np.exp(density.values(grid)).sum() * cell == pytest.approx(1, abs=1e-3)
    assert density.values(rows)[0] == pytest.approx(-math.log(math.tau))  # 2 x 0.5 is 1


def test_fields_of_a_model_by_class():
    model = Known(2).train()
    real, density = plane_fields(model, CODEC)
    rows = np.array([[3.0, -2.0], [-1.0, -2.0]])
    assert real.values(rows).tolist() == pytest.approx([1, 1])  # each fits one of the classes
    one = -0.5 - math.log(math.tau)
    assert density.values(rows)[0] == pytest.approx(one)  # halfway between both
    assert model.training


def test_pictures_grow_by_a_map_for_each_field():
    raws = list(np.random.default_rng(0).normal(size=(30, 2)))
    data = open_data("ring").splits["train"]
    plain = CODEC.preview(raws)
    shown = show(Known(), CODEC, raws, data)
    assert shown.height == plain.height and shown.width > 2.5 * plain.width
    assert show(Known(), CODEC, raws, data).tobytes() == shown.tobytes()
    blank = show(nn.Module(), CODEC, raws, data)
    assert blank.size == plain.size and blank.tobytes() != plain.tobytes()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_map_of_what_can_not_be_drawn(value):
    field = Field(title="odd", unit="", values=lambda rows: np.full(len(rows), value))
    picture = plane(
        np.zeros((3, 2)), limits=((-1, 1), (0, 1e6)), columns=("x", "y"), fields=(field,)
    )
    assert picture.mode == "RGB"
