"""`poiesis denoise`: files in, files out, and what it helped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from poiesis.cli.main import main
from poiesis.data import open_data


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    """A denoising autoencoder trained for some seconds on digits."""
    path = tmp_path_factory.mktemp("denoiser") / "run"
    arguments = ["--data", "digits", "--train.steps", "400", "--train.threads", "1", "--quiet"]
    arguments += ["--train.grids", "0", "--model.level", "0.3"]
    assert main(["train", "denoising-autoencoder", *arguments, "--out", str(path)]) == 0
    return path


def test_noise_is_added_and_taken_away(poiesis, denoiser, tmp_path):
    options = ["--add", "gaussian", "--level", 0.3, "--json", "--quiet"]
    code, out, err = poiesis("denoise", denoiser, *options, "-o", tmp_path / "cleaned")
    assert code == 0, err
    found = json.loads(out)
    assert found["psnr"] > found["psnr_before"] + 2
    files = sorted((tmp_path / "cleaned").glob("test-*.png"))
    assert len(files) == found["samples"] == len(open_data("digits").splits["test"])
    with Image.open(tmp_path / "cleaned" / "before-after.png") as sheet:
        assert sheet.width > 3 * sheet.height  # three rows of ten
    again = poiesis("denoise", denoiser, *options)[1]
    assert json.loads(again)["psnr"] == found["psnr"]


def pixels_in(folder):
    rows = []
    for number in range(12):
        with Image.open(folder / f"a/{number}.png") as picture:
            rows.append(np.asarray(picture).astype(float))
    return np.stack(rows)


def test_files_are_paired_by_name(poiesis, refused, denoiser, tmp_path):
    data = open_data("digits")
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = data.codec.decode(data.splits["test"].x[number])
        pixels = np.asarray(picture).astype(float)
        noisy = np.clip(pixels + 0.3 * 255 * rng.normal(size=pixels.shape), 0, 255)
        for kind, values in (("clean", pixels), ("noisy", noisy)):
            (tmp_path / kind / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / kind / f"a/{number}.png")
    arguments = [denoiser, tmp_path / "noisy", "-o", tmp_path / "out", "--quiet"]
    code, out, err = poiesis("denoise", *arguments, "--clean", tmp_path / "clean")
    assert code == 0, err
    assert "psnr_before" in out and f"cleaned: {tmp_path / 'out'}" in out
    cleaned, clean, noisy = (pixels_in(tmp_path / kind) for kind in ("out", "clean", "noisy"))

    def error(a):
        return np.square(a - clean).mean()

    assert error(cleaned) < 0.6 * error(noisy)
    (tmp_path / "clean" / "a" / "3.png").unlink()
    assert "has no a/3.png" in refused("denoise", *arguments, "--clean", tmp_path / "clean")


def test_mistakes(refused, denoiser, text_run, tmp_path):
    line = refused("denoise", text_run, "--quiet")
    assert "can't reconstruct; models that can: " in line and "denoising-autoencoder" in line
    both = ["--add", "gaussian", "--clean", tmp_path]
    assert "not both" in refused("denoise", denoiser, *both, "--quiet")
    assert "level = 2" in refused("denoise", denoiser, "--add", "masking", "--level", 2, "--quiet")
