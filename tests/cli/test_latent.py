"""`poiesis latent`: every mode, models of every kind of latent, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import poiesis
from poiesis.apply.latent import interpolate
from poiesis.apply.latent import latent as poiesis_latent
from poiesis.cli.latent import MODES
from poiesis.cli.main import main
from poiesis.data import open_data
from poiesis.sampling.latent import slerp


def made(folder, model, *options):
    path = folder / model
    arguments = ["--data", "digits", "--train.threads", "1", "--train.grids", "0", "--quiet"]
    assert main(["train", model, *arguments, *options, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each kind of latent: vector, vector by class, code vectors on a grid, hierarchy."""
    folder = tmp_path_factory.mktemp("latents")
    small = ["--model.widths", "16", "--train.steps", "3"]
    pyramid = ["--model.sizes", "4,1", "--model.encoder", "1,1", "--model.decoder", "1,1"]
    return {
        "autoencoder": made(folder, "autoencoder", *small),
        "cvae": made(folder, "cvae", *small),
        "vq-vae": made(folder, "vq-vae", *small, "--model.codes", "16"),
        "vdvae": made(
            folder, "vdvae", *pyramid, "--model.patch", "2", "--model.widths", "16,16",
            "--train.steps", "3",
        ),
    }  # fmt: skip


WORDS = {
    "interpolate": ["3", "17", "3"],
    "walk": ["3", "--steps", "5"],
    "direction": ["--positive", "7", "--negative", "1", "4"],
    "arithmetic": ["class:8", "class:3", "test-000012"],
    "neighbours": ["3", "class:2", "-k", "4"],
    "map": [],
    "traverse": ["--dims", "3"],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_into_the_run_and_says_numbers(poiesis, vae_run, mode):
    code, out, err = poiesis("latent", vae_run, mode, *WORDS[mode], "--quiet")
    assert code == 0, err
    suffix = {"map": "html", "walk": "gif"}.get(mode, "png")
    path = vae_run / "latent" / f"{mode}.{suffix}"
    assert path.stat().st_size > 200 and f"{mode}: {path}" in out
    code, out, _ = poiesis("latent", vae_run, mode, *WORDS[mode], "--quiet", "--json")
    found = json.loads(out)
    assert found["mode"] == mode and found["path"] == str(path)


@pytest.mark.parametrize("model", ["autoencoder", "cvae", "vq-vae", "vdvae"])
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_latent(poiesis, runs, tmp_path, model, mode):
    out = tmp_path / f"out.{'html' if mode == 'map' else 'png'}"
    code, said, err = poiesis("latent", runs[model], mode, *WORDS[mode], "-o", out, "--json")
    assert code == 0, err
    assert out.exists()
    if mode == "traverse":
        found = json.loads(said)
        measure = {"autoencoder": "variance", "cvae": "kl"}.get(model, "share")
        assert len(found[measure]) == 3 and found[measure] == sorted(found[measure])[::-1]


@pytest.mark.parametrize("model", ["gan", "cgan"])
def test_gans_are_explored_by_their_own_samples(poiesis, tmp_path, model):
    run = made(tmp_path, model, "--train.steps", "3")
    words = {**WORDS, "arithmetic": ["8", "3", "12"], "neighbours": ["3", "-k", "4"]}
    if model == "gan":
        words.pop("direction")  # needs classes
    for mode in words:
        out = tmp_path / f"{mode}.{'html' if mode == 'map' else 'png'}"
        given = [*words[mode], "--limit", 40, "-o", out, "--quiet"]
        code, _, err = poiesis("latent", run, mode, *given)
        assert code == 0, err
    space = poiesis_latent(run, limit=20)
    drawn = space.trained.model.sample(20, seed=0, precision="fp32")
    assert torch.equal(space.inputs.fetch(0, 20), space.trained.view.invert(drawn))
    assert torch.equal(space.point("7").row, space.inputs.fetch(7, 8)[0])
    # Between two classes, half way, the classes are mixed.
    shown = interpolate(space, ("3", "7"), steps=3)
    ends = torch.stack([space.point("3").row, space.point("7").row])
    assert torch.equal(shown.native[0, [0, 2]], ends)
    if model == "cgan":
        weights = torch.zeros(1, 10)
        weights[0, [3, 7]] = 0.5
        z = slerp(space.point("3").z, space.point("7").z, torch.tensor([0.5]))
        assert torch.equal(shown.native[0, 1], space.decode(z, weights)[0])
    for given in (["--input", "digits"], [tmp_path / "interpolate.png"]):
        code, _, err = poiesis("latent", run, "interpolate", 3, *given, "--quiet")
        assert code == 2 and "can't encode; models that can" in err


def test_interpolation_in_every_format(poiesis, vae_run, tmp_path):
    for ending in ("png", "gif", "html"):
        arguments = ["interpolate", 3, 17, "--steps", 6, "-o", tmp_path / f"a.{ending}"]
        code, out, err = poiesis("latent", vae_run, *arguments, "--quiet")
        assert code == 0, err
        assert "test-000003" in out and "6" in out
    with Image.open(tmp_path / "a.png") as strip:
        assert strip.width == 6 * 60 + 4
    assert (tmp_path / "a.html").read_text().count("data:image/png") == 6


def test_the_data_may_be_files(poiesis, vae_run, tmp_path):
    data = open_data("digits")
    for number in range(5):
        picture = data.codec.decode(data.splits["test"].x[number])
        (tmp_path / "in").mkdir(exist_ok=True)
        data.codec.write(picture, tmp_path / "in" / f"{number}.png")
    common = [vae_run, "neighbours", "--quiet", "--json", "-o", tmp_path / "a.png"]
    code, out, err = poiesis("latent", *common, "--input", tmp_path / "in", "3.png", "-k", 9)
    assert code == 0, err
    near = json.loads(out)["nearest"]["3.png"]
    assert sorted(near) == ["0.png", "1.png", "2.png", "4.png"]
    # The same picture as a file: its own sample of the data is nearest to it.
    code, out, err = poiesis("latent", *common, tmp_path / "in" / "3.png", "-k", 1)
    assert code == 0, err
    assert json.loads(out)["nearest"]["3.png"] == {"test-000003": pytest.approx(0, abs=1e-4)}


def test_label_of_a_conditional_model(poiesis, refused, runs, tmp_path):
    out = tmp_path / "a.png"
    for words in ([], ["--label", "7"]):
        assert poiesis("latent", runs["cvae"], "traverse", "3", *words, "-o", out)[0] == 0
        out = tmp_path / "b.png"
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    data = open_data("digits")
    data.codec.write(data.codec.decode(data.splits["test"].x[0]), tmp_path / "x.png")
    line = refused("latent", runs["cvae"], "traverse", tmp_path / "x.png", "-o", out)
    assert "say which (--label)" in line
    words = ["traverse", tmp_path / "x.png", "--label", "7", "-o", out]
    assert poiesis("latent", runs["cvae"], *words)[0] == 0
    assert "no class '12'" in refused("latent", runs["cvae"], "walk", "--label", 12)


def test_direction_as_a_vector(poiesis, vae_run, tmp_path):
    words = ["--positive", "0,6,8", "--how", "classifier", "-o", tmp_path / "a.npz"]
    code, out, err = poiesis("latent", vae_run, "direction", *words)
    assert code == 0, err
    length = float(re.search(r"length +(\S+)", out)[1])
    vector = np.load(tmp_path / "a.npz")["direction"]
    assert vector.shape == (32,) and np.linalg.norm(vector) == pytest.approx(length, rel=1e-3)


def test_from_python(vae_run):
    from poiesis.apply.latent import traversal

    space = poiesis.latent(vae_run, limit=50)
    found = traversal(space, dims=4, steps=3)
    assert found.shown.native.shape == (4, 3, 1, 8, 8) and len(space.codes.z) == 50


def test_reduce_takes_hierarchies_too(poiesis, runs):
    code, out, err = poiesis("reduce", runs["vdvae"], "--limit", 20, "--json")
    assert code == 0, err
    assert json.loads(out)["dimensions"] > 16


def test_help_teaches(poiesis):
    code, out, _ = poiesis("latent", "--help")
    assert code == 0
    for name, mode in MODES.items():
        assert name in out and mode.what in out and mode.examples[0] in out
        code, more, _ = poiesis("latent", "RUN", name, "--help")
        assert code == 0 and all(example in more for example in mode.examples)


def test_mistakes(refused, vae_run, text_run, tmp_path, monkeypatch):
    out = ["-o", tmp_path / "a.png"]
    assert "needs RUN" in refused("latent", "--quiet")
    assert "needs a mode: interpolate, walk" in refused("latent", vae_run)
    assert "did you mean 'interpolate'?" in refused("latent", vae_run, "interpolat")
    assert "has no option '--positive'" in refused("latent", vae_run, "walk", "--positive", 3)
    assert "models that can: " in refused("latent", text_run, "walk", *out)
    assert "ends in none of .png" in refused("latent", vae_run, "walk", "-o", "a.txt")
    assert "ends in none of .html" in refused("latent", vae_run, "map", *out)
    assert "no 5000" in refused("latent", vae_run, "interpolate", 3, 5000, *out)
    assert "two points or more" in refused("latent", vae_run, "interpolate", 3, *out)
    assert "steps = 1 " in refused("latent", vae_run, "walk", "--steps", 1, *out)
    assert "step_size = 2" in refused("latent", vae_run, "walk", "--step-size", 2, *out)
    assert "--fps = 99" in refused("latent", vae_run, "walk", "--fps", 99, *out)
    assert "--limit = 0" in refused("latent", vae_run, "map", "--limit", 0)
    assert "--positive, the classes" in refused("latent", vae_run, "direction", *out)
    assert "no class 'x'" in refused("latent", vae_run, "direction", "--positive", "x", *out)
    assert "takes three points, not 2" in refused("latent", vae_run, "arithmetic", 1, 2, *out)
    assert "moves one point, not 2" in refused("latent", vae_run, "traverse", 1, 2, *out)
    assert "dims = 0" in refused("latent", vae_run, "traverse", "--dims", 0, *out)
    assert "without classes" in refused("latent", vae_run, "walk", "--label", 3, *out)
    assert "at least 4 samples" in refused("latent", vae_run, "map", "--limit", 3)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs ffmpeg" in refused("latent", vae_run, "walk", "-o", tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_umap_that_is_missing(refused, vae_run, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "umap" else find(name, *a)
    )
    line = refused("latent", vae_run, "map", "--method", "umap")
    assert "pip install 'poiesis[umap]'" in line
