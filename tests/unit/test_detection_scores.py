"""Anomaly scores against closed forms and other packages; what the combined one is made of."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from poiesis.apply.detect import heatmaps
from poiesis.apply.detect.baselines import BASELINES, SIDE, baseline_scores, pixel_rows
from poiesis.apply.detect.observe import webp_bits
from poiesis.apply.detect.scores import COMBINED, SCORES, fit_scores
from poiesis.apply.inputs import flat_code


def observations(n, *, seed=0, shift=0.0):
    """Return made-up observations of n images; shift moves all of them away from normal."""
    rng = np.random.default_rng(seed)

    def rows(width):
        mix = np.random.default_rng(width).normal(size=(width, width))
        return torch.from_numpy(rng.normal(size=(n, width)) @ mix + shift)

    return {
        "features": rows(12),
        "features_error": rows(11),
        "code": rows(6),
        "code_error": rows(5),
        "pixels": torch.from_numpy(rng.gamma(3, size=n) + 5 * shift),
        "nats": torch.from_numpy(rng.normal(-50, 3, size=n)),
    }


def test_distances_are_those_of_other_packages():
    train, new = observations(400), observations(50, seed=1)
    found = fit_scores(train)(new)
    code, other = train["code"].numpy(), new["code"].numpy()
    fitted = LedoitWolf().fit(code)
    precision = np.linalg.inv(fitted.covariance_)
    centre = code.mean(0)[None]
    wanted = cdist(other, centre, "mahalanobis", VI=precision)[:, 0]
    np.testing.assert_allclose(found["latent-distance"], wanted**2, rtol=1e-6)
    to_all = np.sort(cdist(other, code, "mahalanobis", VI=precision), axis=1)
    np.testing.assert_allclose(found["latent-neighbours"], to_all[:, :5].mean(1), rtol=1e-6)
    np.testing.assert_array_equal(found["reconstruction"], new["pixels"].numpy())
    np.testing.assert_array_equal(found["likelihood"], new["nats"].numpy())


def test_training_images_are_not_their_own_neighbours():
    train = observations(300)["code"].numpy()
    score = next(s for s in SCORES if s.name == "latent-neighbours")
    own, measure = score.fit(train)
    assert own.mean() == pytest.approx(
        measure(observations(300, seed=5)["code"].numpy()).mean(), rel=0.1
    )
    assert measure(train).mean() < 0.9 * own.mean()


def test_combined_takes_one_score_from_each_place_and_no_units():
    train, new = observations(400), observations(60, seed=2)
    fitted = fit_scores(train)
    assert fitted.members == (
        "features",
        "reconstruction-features",
        "reconstruction-code",
        "latent-neighbours",
    )
    scaled = [{k: 1000 * v for k, v in each.items()} for each in (train, new)]
    a, b = fitted(new)[COMBINED], fit_scores(scaled[0])(scaled[1])[COMBINED]
    np.testing.assert_allclose(a - a.mean(), b - b.mean(), atol=1e-6)
    less = {**train, "nats": train["nats"] * 0, "pixels": train["pixels"] * 0}
    np.testing.assert_allclose(fit_scores(less)(new)[COMBINED], a)


def test_combined_finds_what_its_members_find():
    train, normal = observations(400), observations(200, seed=3)
    strange = observations(200, seed=4, shift=1.5)
    fitted = fit_scores(train)
    a, b = fitted(normal), fitted(strange)
    truth = [0] * 200 + [1] * 200
    area = {name: roc_auc_score(truth, np.r_[a[name], b[name]]) for name in a}
    assert area[COMBINED] > max(area[name] for name in fitted.members) > 0.7
    assert 0.4 < area["likelihood"] < 0.6


def test_models_that_only_judge():
    n = 50
    some = {"features": observations(n)["features"], "fake": torch.linspace(-3, 3, n).double()}
    assert fit_scores(some).members == ("features", "discriminator")
    assert list(fit_scores({"features": some["features"]}).measures) == ["features"]


def test_constant_observations_stay_finite():
    train, new = observations(40), observations(10, seed=1)
    for name in ("code", "code_error"):
        train[name] = torch.ones_like(train[name])
    for values in fit_scores(train)(new).values():
        assert np.isfinite(values).all()


def test_bits_are_those_of_a_webp_file_that_holds_the_image():
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 16, 16), generator=rng, dtype=torch.uint8)
    plain = torch.full((3, 16, 16), 7, dtype=torch.uint8)
    assert webp_bits(noise) > 3 * 16 * 16 * 7 > 1000 > webp_bits(plain)
    file = io.BytesIO()
    picture = Image.fromarray(noise.permute(1, 2, 0).numpy())
    picture.save(file, "WEBP", lossless=True, quality=100)
    assert webp_bits(noise) == 8 * len(file.getvalue())
    with Image.open(file) as back:
        np.testing.assert_array_equal(np.asarray(back), np.asarray(picture))
    for channels in (1, 2, 4):
        assert webp_bits(torch.zeros(channels, 8, 8, dtype=torch.uint8)) > 0


def test_codes_of_every_form_become_rows():
    z = torch.arange(12.0).reshape(2, 3, 2)
    assert flat_code(z).tolist() == z.flatten(1).tolist()
    assert flat_code({"codes": z.long(), "z": z}).shape == (2, 6)
    both = flat_code({"z0": z, "z1": z[:, :1]})
    assert both.shape == (2, 8) and both[0, 6:].tolist() == [0, 1]


def test_baselines_see_pixels_and_find_other_images():
    rng = np.random.default_rng(0)
    normal = np.clip(rng.normal(0.3, 0.05, size=(240, 1, 40, 40)), 0, 1)
    normal[:, :, 10:20] += 0.3
    strange = normal[:60, :, ::-1]
    images = torch.from_numpy((np.concatenate([normal, strange]) * 255).astype(np.uint8))
    rows = pixel_rows(images, 256)
    assert rows.shape == (300, SIDE * SIDE) and rows.min() >= 0 and rows.max() <= 1
    small = pixel_rows(images[:2, :, :8, :8], 256)
    np.testing.assert_allclose(small, images[:2, :, :8, :8].flatten(1).numpy() / 255, rtol=1e-6)
    seen = []
    for name, held_out, inputs in baseline_scores(
        rows[:120], rows[120:180], rows[180:], components=4
    ):
        seen.append(name)
        if inputs is None:
            assert name == "pyod-ecod"
            continue
        assert len(held_out) == 60 and roc_auc_score([0] * 60 + [1] * 60, inputs) > 0.95, name
    assert seen == list(BASELINES)


def test_colours_share_one_scale():
    errors = torch.zeros(1, 10, 10)
    errors[0, 0, 0] = 0.5
    assert heatmaps.full_scale(torch.rand(4, 50, 50)) == pytest.approx(0.999, abs=0.01)
    picture = np.asarray(heatmaps.coloured(errors[0], 0.5)).astype(int)
    assert picture.shape == (130, 130, 3)
    assert (picture[:13, :13] == picture[0, 0]).all() and picture[0, 0].sum() > 500
    assert picture[20, 20].sum() < 20
    assert (np.asarray(heatmaps.coloured(2 * errors[0], 0.5)) == picture).all()
