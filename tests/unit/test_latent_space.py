"""Latent spaces: closed forms of paths and directions, and spaces whose codes are known."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from poiesis.apply.inputs import Inputs, latent_parts
from poiesis.apply.latent import (
    LatentSpace,
    arithmetic,
    check_path,
    direction,
    interpolate,
    latent_map,
    neighbours,
    random_walk,
    traversal,
    write,
)
from poiesis.apply.latent.maps import project
from poiesis.apply.latent.pictures import frames, pictures, sheet
from poiesis.data import open_data
from poiesis.errors import ConfigError, DataError, RunError, SpecError
from poiesis.models.autoencoders.vae import VAE
from poiesis.models.trained import Trained
from poiesis.rng import generator
from poiesis.sampling import latent as ways
from poiesis.spec import to_json


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator("test", seed), dtype=torch.float64)


# -- ways ------------------------------------------------------------------------------------------


def test_lerp_is_the_line():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    found = ways.lerp(a, b, torch.tensor([0.0, 0.25, 1.0, 2.0]))
    assert found.tolist() == [[1, 2], [1.5, 1], [3, -2], [5, -6]]


def test_slerp_of_unit_vectors_turns_at_even_speed():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    for seed in range(20):
        a, b = torch.nn.functional.normalize(randn(2, 7, seed=seed), dim=1)
        found = ways.slerp(a, b, t)
        torch.testing.assert_close(found.norm(dim=1), torch.ones_like(t))
        torch.testing.assert_close(found[[0, -1]], torch.stack([a, b]))
        torch.testing.assert_close(found[4], (a + b) / (a + b).norm())  # half way
        torch.testing.assert_close(found @ a, (t * (a @ b).acos()).cos())


def test_slerp_of_any_lengths_ends_where_it_should_and_keeps_equal_ones():
    a, b = 3 * randn(5), randn(5, seed=1)
    found = ways.slerp(a, b, torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(found, torch.stack([a, b]))
    b = b * a.norm() / b.norm()
    middle = ways.slerp(a, b, torch.tensor([0.5]).double())[0]
    torch.testing.assert_close(middle.norm(), a.norm())


def test_slerp_where_vectors_span_no_plane():
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    a = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ways.slerp(a, 2 * a, t), ways.lerp(a, 2 * a, t))
    torch.testing.assert_close(ways.slerp(a, 0 * a, t), ways.lerp(a, 0 * a, t))
    opposite = ways.slerp(a, -a, t)
    torch.testing.assert_close(opposite.norm(dim=1), torch.full_like(t, 2))
    torch.testing.assert_close(opposite[[0, -1]], torch.stack([a, -a]))
    torch.testing.assert_close(opposite[2] @ a, torch.tensor(0.0, dtype=torch.float64))
    near = ways.slerp(a, -a + 1e-9 * randn(3), t)
    torch.testing.assert_close(near.norm(dim=1), torch.full_like(t, 2))
    one = torch.tensor([1.0])
    assert ways.slerp(one, -one, torch.tensor([0.5])).tolist() == [[0]]


def test_path_goes_through_all_points():
    points = randn(3, 4)
    for way in ("linear", "spherical"):
        found = ways.path(points, 5, way)
        assert found.shape == (9, 4)
        torch.testing.assert_close(found[[0, 4, 8]], points)


def test_walk_is_distributed_as_the_codes_and_forgets_as_fast_as_it_says():
    mixing = randn(3, 3)
    codes = randn(400, 3, seed=1) @ mixing + 5
    places = ways.walk(codes[0], codes, 40_000, 0.5, generator("walk"))
    assert torch.equal(places[0], codes[0])
    scale = codes.var(0).max()
    assert (places.mean(0) - codes.mean(0)).abs().max() < 0.06 * scale.sqrt()
    assert (places.T.cov() - codes.T.cov()).abs().max() < 0.06 * scale
    centred = places - places.mean(0)
    kept = (centred[1:] * centred[:-1]).sum(0) / centred.square().sum(0)
    assert kept.tolist() == pytest.approx([math.sqrt(1 - 0.5**2)] * 3, abs=0.02)


def test_walk_stays_in_the_span_of_few_codes():
    codes = randn(3, 50)
    places = ways.walk(codes[0], codes, 20, 0.7, generator("walk"))
    span = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2]
    inside = (places - codes.mean(0)) @ span.T @ span + codes.mean(0)
    torch.testing.assert_close(places, inside)
    with pytest.raises(DataError, match="at least two codes"):
        ways.walk(codes[0], codes[:1], 5, 0.5, generator("walk"))


def test_mean_difference_is_the_known_direction():
    noise, known = randn(500, 6), torch.tensor([1.0, -2, 0, 0.5, 0, 3]).double()
    codes = torch.cat([noise, noise + known])
    positive = torch.arange(1000) >= 500
    torch.testing.assert_close(ways.mean_difference(codes, positive), known)
    with pytest.raises(DataError, match="0 of 1000 have it"):
        ways.mean_difference(codes, torch.zeros(1000, dtype=torch.bool))


def test_classifier_normal_is_fishers_direction_where_that_is_the_best_plane():
    # Two normals of one covariance: the log-odds are linear with the coefficients C^-1 d.
    mixing, known = randn(4, 4) + torch.eye(4), torch.tensor([1.0, 0, -1, 0.5]).double()
    noise = randn(20_000, 4, seed=1) @ mixing
    codes = torch.cat([noise, noise + known])
    positive = torch.arange(len(codes)) >= len(noise)
    found = ways.classifier_normal(codes, positive)
    fisher = torch.linalg.solve(mixing.T @ mixing, known)
    assert torch.cosine_similarity(found, fisher, dim=0) > 0.999
    assert torch.cosine_similarity(found, known, dim=0) < 0.95  # the two methods differ here
    # One step leads as far as the means lie apart along it.
    torch.testing.assert_close(found @ known, found @ found)


def test_classifier_hardly_looks_at_dimensions_that_hardly_vary():
    # As a VAE's inactive ones: they may tell the groups apart, yet to move them does nothing.
    positive = torch.arange(400) >= 200
    telling = randn(400, 1) + 2 * positive[:, None]
    faint = 1e-3 * (randn(400, 1, seed=1) + 2 * positive[:, None])
    found = ways.classifier_normal(torch.cat([telling, faint, 0 * faint + 7], 1), positive)
    assert found[0] > 1 and found[1].abs() < 0.1 * found[0] and found[2] == 0


@pytest.mark.parametrize("shape", [(60, 5), (20, 90)])
def test_principal_axes_are_those_of_scikit_learn(shape):
    x = randn(*shape) @ randn(shape[1], shape[1], seed=1)
    axes, deviations, shares = ways.principal_axes(x, 3)
    peer = PCA(3, svd_solver="full").fit(x.numpy())
    np.testing.assert_allclose(np.abs((axes.numpy() * peer.components_).sum(1)), 1, rtol=1e-9)
    np.testing.assert_allclose(deviations**2, peer.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_, rtol=1e-9)


def test_there_are_as_many_principal_axes_as_the_rank():
    for shape in ((50, 4), (6, 40)):
        flat = randn(shape[0], 2) @ randn(2, shape[1], seed=1)
        assert len(ways.principal_axes(flat, 10)[0]) == 2
    assert ways.principal_axes(torch.ones(5, 3), 2)[2].tolist() == [0]


def test_traverse_sets_one_coordinate():
    start, mean = randn(4), randn(4, seed=1)
    values = torch.tensor([[-1.0, 2.0]]).double()
    found = ways.traverse(start, mean, torch.eye(4).double()[2:3], values)[0]
    expected = start.repeat(2, 1)
    expected[:, 2] = mean[2] + values[0]
    torch.testing.assert_close(found, expected)


# -- spaces whose codes are known ------------------------------------------------------------------

NAMES = ("zero", "<b>one</b>", "two</script>")


class Glass(nn.Module):
    """Pixels to codes, of which each is a pixel times a factor, and back."""

    def __init__(self, factor, log_variance=None):
        super().__init__()
        self.factor, self.log_variance = factor, log_variance

    def forward(self, x, condition):
        if self.log_variance is None:  # the decoder
            return (x / self.factor).reshape(-1, 1, 8, 8)
        mean = x.flatten(1) * self.factor
        return torch.cat([mean, self.log_variance.expand_as(mean)], 1)


def glass(rows, labels, *, factor=None, log_variance=None, limit=2000):
    """Return the space of a VAE whose code is the picture, 64 values in [-1, 1], times factor."""
    data = open_data("digits")
    config = VAE.Config(network="mlp", widths=(8,), latent_dim=64, likelihood="gaussian")
    model = VAE(config, VAE.view(config, data.spec)).eval()
    factor = torch.ones(64) if factor is None else factor
    model.encoder = Glass(factor, torch.zeros(64) if log_variance is None else log_variance)
    model.decoder = Glass(factor)
    stored = {"name": "digits", "variant": "digits", "spec": to_json(data.spec)}
    stored |= {"condition": to_json(data.condition), "codec": data.codec.to_json()}
    stored["condition"] |= {"count": len(NAMES), "names": NAMES}
    trained = Trained(None, "vae", model, stored, {}, "", 0)
    inputs = Inputs(
        "glass", [f"test-{n:06d}" for n in range(len(rows))], labels, lambda a, b: rows[a:b]
    )
    return LatentSpace(trained, inputs, limit=limit)


@pytest.fixture(scope="module")
def rows():
    """Thirty random pictures of 17 levels."""
    levels = torch.randint(0, 17, (30, 1, 8, 8), generator=generator("rows"))
    return levels.to(torch.uint8)


@pytest.fixture(scope="module")
def space(rows):
    return glass(rows, [n % 3 for n in range(30)])


def test_codes_and_back(space, rows):
    assert not space.grid and space.has_posterior
    torch.testing.assert_close(space.codes.z, rows.flatten(1) / 8.0 - 1)
    assert torch.equal(space.decode(space.codes.z, [None] * 30), rows)
    assert len(glass(rows, None, limit=7).codes.z) == 7


def test_interpolation_of_pixels(space, rows):
    shown = interpolate(space, ("0", "test-000001", "2"), steps=5, way="linear")
    assert shown.native.shape == (1, 9, 1, 8, 8)
    a, b = rows[0].float(), rows[1].float()
    for place in range(5):
        expected = a + (b - a) * place / 4
        assert (shown.native[0, place] - expected).abs().max() <= 0.5
    assert torch.equal(shown.native[0, [0, 4, 8]], rows[:3])
    assert shown.columns[:5] == ["zero", "0.25", "0.5", "0.75", "<b>one</b>"]
    arc = interpolate(space, ("0", "1"), steps=3)  # spherical, since there is a posterior
    expected = ways.slerp(*space.codes.z[:2], torch.tensor([0.5])).reshape(8, 8)
    expected = ((expected.clamp(-1, 1) + 1) * 8).round()
    assert (arc.native[0, 1, 0] - expected).abs().max() <= 1
    assert torch.equal(interpolate(space, steps=2).native, interpolate(space, steps=2).native)


def test_points_and_their_mistakes(space, rows):
    mean = space.point("class:two</script>")
    torch.testing.assert_close(mean.z, (rows[2::3].flatten(1) / 8.0 - 1).mean(0))
    assert mean.row is None and mean.label == 2
    with pytest.raises(DataError, match="samples 0 to 29, no 30"):
        space.point("30")
    with pytest.raises(DataError, match="no file, no number or name"):
        space.point("nothing.png")
    with pytest.raises(SpecError, match="the classes are: zero"):
        space.point("class:seven")
    with pytest.raises(DataError, match="classes are not known"):
        glass(rows, None).point("class:zero")
    with pytest.raises(DataError, match="none of the 30 samples is of zero"):
        glass(rows, [1] * 30).point("class:zero")
    with pytest.raises(ConfigError, match="two points or more"):
        interpolate(space, ("0",))
    with pytest.raises(DataError, match="leads nowhere"):
        interpolate(glass(rows[:1], None))


def test_a_picture_file_is_a_point(space, rows, tmp_path):
    codec = space.trained.codec
    codec.write(codec.decode(rows[4]), tmp_path / "4.png")
    point = space.point(str(tmp_path / "4.png"))
    torch.testing.assert_close(point.z, space.codes.z[4])
    assert point.label is None


def test_random_walk_starts_at_its_points(space, rows):
    shown = random_walk(space, ("3", "8"), steps=4, step_size=0.3)
    assert torch.equal(shown.native[:, 0], rows[[3, 8]])
    assert not torch.equal(shown.native[0, 1], shown.native[0, 0])
    again = random_walk(space, ("3", "8"), steps=4, step_size=0.3)
    assert torch.equal(again.native, shown.native)
    other = random_walk(space, ("3", "8"), steps=4, step_size=0.3, seed=1)
    assert not torch.equal(other.native, shown.native)


def test_direction_moves_the_known_pixels():
    # Class 1 has the pixel (2, 3) brighter by 8 levels, class 2 the pixel (5, 5) by 4.
    levels = torch.randint(4, 8, (60, 1, 8, 8), generator=generator("rows"))
    levels = levels.repeat(3, 1, 1, 1)
    levels[60:120, 0, 2, 3] += 8
    levels[120:, 0, 5, 5] += 4
    space = glass(levels.to(torch.uint8), [n // 60 for n in range(180)])
    found = direction(space, ["<b>one</b>"], ["zero"], strength=1, steps=3)
    expected = torch.zeros(64)
    expected[2 * 8 + 3] = 1  # 8 levels of 16, from -1 to 1
    torch.testing.assert_close(found.vector, expected, atol=1e-6, rtol=0)
    assert found.counts == (60, 60) and found.accuracy > 0.95
    change = found.shown.native[:, 2].int() - found.shown.native[:, 1].int()
    assert change[:, 0, 2, 3].tolist() == [8] * 4 and change.abs().sum() == 32
    assert found.shown.columns == ["-1", "0", "1"]
    learnt = direction(space, ["<b>one</b>"], ["zero"], how="classifier")
    assert learnt.vector.argmax() == 19 and learnt.cosine > 0.7
    # The means lie 1 apart along the axis, of which the plane's normal sees the cosine.
    assert learnt.vector[19] == pytest.approx(learnt.cosine**2, abs=1e-4)
    assert float(learnt.vector.norm()) == pytest.approx(learnt.cosine, abs=1e-4)
    rest = direction(space, ["2"]).vector  # against both others
    assert rest[45] == pytest.approx(0.5, abs=1e-5) and rest[19] == pytest.approx(-0.5, abs=1e-5)
    with pytest.raises(ConfigError, match="positive and negative at once"):
        direction(space, ["zero"], ["0"])


def test_arithmetic_is_that_of_pixels(rows):
    # An a - b + c that stays within the levels: c differs from b alone where a does.
    levels = torch.full((3, 1, 8, 8), 4)
    levels[0, 0, 0] += 5
    levels[2, 0, :, 0] += 2
    small = glass(torch.cat([levels, levels[:2] + 1]).to(torch.uint8), None)
    found = arithmetic(small, "0", "1", "2", k=2)
    assert torch.equal(
        found.shown.native[0, 3], (levels[0] - levels[1] + levels[2]).to(torch.uint8)
    )
    assert found.shown.columns == ["a", "b", "c", "a-b+c", "near 1", "near 2"]
    # The points themselves don't count: of a - b + b it is another copy of a.
    twice = glass(torch.cat([rows, rows[7:8]]), None)
    found = arithmetic(twice, "7", "3", "3", k=1)
    assert found.names == [["test-000030"]]
    assert found.distances[0][0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_are_those_of_scikit_learn(space, rows, metric):
    from sklearn.neighbors import NearestNeighbors

    x = rows.flatten(1).double().numpy() / 8 - 1
    far, near = NearestNeighbors(n_neighbors=5, metric=metric).fit(x).kneighbors(x[[3, 8]])
    found = neighbours(space, ("3", "8"), k=4, metric=metric)
    assert found.names == [[f"test-{n:06d}" for n in row[1:]] for row in near]
    np.testing.assert_allclose(found.distances, far[:, 1:], rtol=1e-5)
    assert torch.equal(found.shown.native[:, 1], rows[near[:, 1]])


def test_dimensions_are_sorted_by_kl_and_moved_alone(rows):
    # KL(N(m, v) || N(0, 1)) by dimension, in closed form: the order is 9, 4, 30, then the rest.
    factor, log_variance = torch.full((64,), 0.01), torch.zeros(64)
    factor[[4, 30]] = torch.tensor([2.0, 1.0])
    log_variance[9] = -8.0
    space = glass(rows, None, factor=factor, log_variance=log_variance)
    means = (rows.flatten(1) / 8.0 - 1) * factor
    kl = 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean(0)
    found = traversal(space, "0", dims=3, reach=1, steps=3)
    assert found.order == [9, 4, 30] == kl.argsort(descending=True)[:3].tolist()
    assert found.measure == "kl" and found.values == pytest.approx(kl[[9, 4, 30]].tolist())
    assert found.total == pytest.approx(float(kl.sum()))
    assert found.active == int((means.var(0) > 0.01).sum()) == 2
    native = found.shown.native.flatten(2).int()
    moved = (native[:, 0] - native[:, 2]) != 0
    assert [row.nonzero().flatten().tolist() for row in moved] == [[9], [4], [30]]
    # Values are the mean of the data plus and minus one deviation of mean and noise together.
    deviation = math.sqrt(float(means[:, 4].var()) + 1) / 2.0
    expected = float(means[:, 4].mean()) / 2 - deviation
    assert native[1, 0, 4] == round((max(-1, expected) + 1) * 8)


def test_traversal_without_posterior_goes_by_variance_and_components_by_pca(
    space, rows, monkeypatch
):
    monkeypatch.setattr(VAE, "encode", lambda self, x, y=None: {"z": x.flatten(1)})
    plain = glass(rows, None)
    found = traversal(plain, dims=4)
    variance = (rows.flatten(1) / 8.0).var(0)
    assert found.measure == "variance" and not plain.has_posterior
    assert found.order == variance.argsort(descending=True)[:4].tolist()
    found = traversal(plain, axes="components", dims=3)
    peer = PCA(3).fit(rows.flatten(1).numpy())
    assert found.values == pytest.approx(peer.explained_variance_ratio_.tolist(), rel=1e-4)
    with pytest.raises(DataError, match="one sample has no spread"):
        traversal(glass(rows[:1], None))


def test_codes_on_a_grid_are_moved_by_components(rows, monkeypatch):
    def encode(self, x, y=None):
        return {"z0": x[:, :, :4], "z1": x[:, :, 4:].reshape(len(x), 2, 16)}

    def decode(self, latent, y=None):
        lower = latent["z1"].reshape(-1, 1, 4, 8)
        return torch.cat([latent["z0"], lower], 2)

    monkeypatch.setattr(VAE, "encode", encode)
    monkeypatch.setattr(VAE, "decode", decode)
    grid = glass(rows, None)
    assert grid.grid and torch.equal(grid.decode(grid.codes.z, [None] * 30), rows)
    assert traversal(grid, dims=2).measure == "share"
    with pytest.raises(ConfigError, match="use axes = components"):
        traversal(grid, axes="dimensions")


def test_a_latent_of_symbols_is_refused(rows, monkeypatch):
    from poiesis.errors import CapabilityError

    monkeypatch.setattr(VAE, "encode", lambda self, x, y=None: {"codes": x.long()})
    with pytest.raises(CapabilityError, match=r"nothing between them; models that can: .*beta-vae"):
        glass(rows, None)
    assert list(latent_parts(torch.zeros(1))) == ["z"]


# -- pages and files -------------------------------------------------------------------------------


def stored(html):
    """Return the data in a page."""
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert block
    return json.loads(block[1])


def image(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def assert_self_contained(html):
    assert not re.search(r"https?:|@import|<link|<iframe|fetch\(|import\(", html)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", html)
    assert all((a or b).startswith("data:") for a, b in sources)


def test_pca_map_is_that_of_scikit_learn(space, rows, tmp_path):
    found = latent_map(space, out=tmp_path / "map.html")
    peer = PCA(2).fit_transform(rows.flatten(1).double().numpy() / 8 - 1)
    signs = np.sign((peer * found.xy.numpy()).sum(0))
    np.testing.assert_allclose(found.xy, peer * signs, atol=1e-6)
    assert 0 <= found.trustworthiness <= 1
    html = (tmp_path / "map.html").read_text()
    assert_self_contained(html)
    data = stored(html)
    assert data["classes"] == list(NAMES) and html.count("</script>") == 2
    assert data["labels"] == [n % 3 for n in range(30)]
    assert data["names"][7] == "test-000007"
    # One scale for both axes.
    peer = peer * signs
    centred = peer - (peer.min(0) + peer.max(0)) / 2
    np.testing.assert_allclose(data["points"], centred / np.abs(centred).max(), atol=1e-4)
    thumbs, (w, h) = image(data["thumbs"]), data["size"]
    for number in (0, 11, 29):
        row, column = divmod(number, data["across"])
        tile = thumbs.crop((column * w, row * h, (column + 1) * w, (row + 1) * h))
        wanted = space.trained.codec.decode(rows[number])
        assert tile.tobytes() == wanted.tobytes()


def test_tsne_keeps_apart_what_is_apart():
    z = torch.cat([randn(30, 6), randn(30, 6, seed=1) + 20])
    xy, axes = project(z, "tsne")
    first, second = xy[:30], xy[30:]
    gap = (first.mean(0) - second.mean(0)).norm()
    assert gap > 2 * max((part - part.mean(0)).norm(dim=1).mean() for part in (first, second))
    assert axes == ("", "") and torch.equal(xy, project(z, "tsne")[0])
    with pytest.raises(DataError, match="at least 4 samples, not 3"):
        project(z[:3], "tsne")


@pytest.mark.filterwarnings("ignore")
def test_umap_keeps_apart_what_is_apart():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    z = torch.cat([randn(30, 6), randn(30, 6, seed=1) + 20])
    xy, _ = project(z, "umap")
    gap = (xy[:30].mean(0) - xy[30:].mean(0)).norm()
    assert gap > 2 * (xy[:30] - xy[:30].mean(0)).norm(dim=1).mean()


def test_map_of_codes_of_one_dimension():
    xy, _ = project(randn(10, 1), "pca")
    assert xy.shape == (10, 2) and xy[:, 1].abs().max() == 0


@pytest.fixture
def shown(space, rows):
    return pictures(
        space.trained, "A </title> title", rows[:6].reshape(2, 3, 1, 8, 8), ["up", "down"], "abc"
    )


def test_sheet_holds_every_picture(shown, rows):
    canvas = sheet(shown)
    assert canvas.mode == "L"
    pixels = np.asarray(canvas)
    for row in range(2):
        for column in range(3):
            tile = np.asarray(shown.tiles[row][column]).repeat(7, 0).repeat(7, 1)
            y, x = canvas.height - (2 - row) * 60, canvas.width - (3 - column) * 60
            assert np.array_equal(pixels[y : y + 56, x : x + 56], tile)


def test_gif_has_a_frame_for_each_column(shown, tmp_path):
    write(shown, tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3 and film.info["loop"] == 0 and film.info["duration"] == 100
        for number, frame in enumerate(frames(shown)):
            film.seek(number)
            assert film.convert("L").tobytes() == frame.tobytes()


def test_slider_holds_all_frames_and_nothing_from_elsewhere(shown, tmp_path):
    write(shown, tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text()
    assert_self_contained(html)
    assert "<title>A &lt;/title&gt; title</title>" in html
    data = stored(html)
    assert data["names"] == ["a", "b", "c"]
    for uri, frame in zip(data["frames"], frames(shown), strict=True):
        assert image(uri).tobytes() == frame.tobytes()


def script(folder, text):
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_ffmpeg_gets_whole_frames_of_even_size(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path, f'echo "$@" > {tmp_path}/said; for last; do :; done; cat > "$last"')
    write(shown, tmp_path / "a.mp4", fps=10)
    said = (tmp_path / "said").read_text()
    width, height = map(int, re.search(r"-s (\d+)x(\d+) -r 10 ", said).groups())
    assert width % 2 == height % 2 == 0
    raw = np.frombuffer((tmp_path / "a.mp4").read_bytes(), np.uint8)
    films = raw.reshape(3, height, width, 3)
    for frame, film in zip(frames(shown), films, strict=True):
        pixels = np.asarray(frame)
        assert np.array_equal(film[: len(pixels), : pixels.shape[1], 1], pixels)


def test_ffmpeg_that_fails_or_is_missing(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs ffmpeg on the PATH; install it, or write \.gif"):
        check_path(tmp_path / "a.mp4")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path, 'cat > /dev/null; echo "no such codec" >&2; exit 1')
    with pytest.raises(RunError, match=r"\(no such codec\); write \.gif instead"):
        write(shown, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_real_film(shown, tmp_path):
    write(shown, tmp_path / "a.mp4", fps=10)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_pages_run_in_a_browser(space, shown, tmp_path):
    write(shown, tmp_path / "a.html")
    latent_map(space, out=tmp_path / "map.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}"]

    def dom(name):
        page = (tmp_path / name).as_uri()
        return subprocess.run([*command, "--dump-dom", page], capture_output=True, text=True).stdout

    assert '<div id="label" aria-live="polite">a</div>' in dom("a.html")
    found = dom("map.html")
    assert re.findall(r"<small>(\d+)</small>", found) == ["10", "10", "10"]
    assert "&lt;b&gt;one&lt;/b&gt;" in found
