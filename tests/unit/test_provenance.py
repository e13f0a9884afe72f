"""Recipes travel with the files."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from poiesis.data.provenance import read_recipe, sidecar, write_png, write_sidecar
from poiesis.errors import DataError

RECIPE = {"model": "ab" * 32, "seed": 7, "config": {"β": 1.5, "name": "vae"}, "index": 3}


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_png_holds_pixels_and_recipe(tmp_path):
    path = tmp_path / "x.png"
    write_png(picture(), path, RECIPE)
    assert read_recipe(path) == RECIPE
    with Image.open(path) as image:
        assert image.tobytes() == picture().tobytes()
        assert json.loads(image.info["poiesis"]) == RECIPE


def test_same_recipe_same_bytes(tmp_path):
    first, second = io.BytesIO(), io.BytesIO()
    write_png(picture(), first, RECIPE)
    write_png(picture(), second, dict(reversed(RECIPE.items())))
    assert first.getvalue() == second.getvalue()


def test_sidecar(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("text")
    write_sidecar(path, RECIPE)
    assert sidecar(path) == tmp_path / "x.txt.json"
    assert read_recipe(path) == RECIPE


def test_files_without_a_recipe(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("text")
    (tmp_path / "y.txt").write_text("text")
    (tmp_path / "y.txt.json").write_text("[1]")
    cases = {"x.png": "holds no recipe", "x.txt": "x.txt.json", "y.txt": "damaged", "z": "check"}
    for name, match in cases.items():
        with pytest.raises(DataError, match=match):
            read_recipe(tmp_path / name)


def test_recipe_cut_off(tmp_path):
    path = tmp_path / "x.png"
    write_png(picture(), path, RECIPE)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError):
        read_recipe(path)
