"""`poiesis translate` and `poiesis upscale`: pictures in, images out, held to the real ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import poiesis as package
from poiesis.cli.main import main
from poiesis.data import open_data

QUICK = ["--train.threads", "1", "--train.grids", "1", "--quiet"]
SMALL = ["--model.channels", "16", "--model.multipliers", "1,1", "--model.attention", "4"]


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory):
    """A model that learned to make 4 x 4 digits 8 x 8."""
    path = tmp_path_factory.mktemp("upscale") / "run"
    options = ["--model.task", "upscale-2", "--train.steps", "250", *SMALL, *QUICK]
    assert main(["train", "flow-matching", "--data", "digits", "--out", str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def negatives(tmp_path_factory):
    """A folder of digits, each next to its negative, in red."""
    folder = tmp_path_factory.mktemp("pairs")
    data = open_data("digits")
    x, _ = data.splits["train"].fetch(torch.arange(240))
    for i, row in enumerate(x):
        digit = np.asarray(data.codec.decode(row))
        red = np.stack([255 - digit, 0 * digit, 0 * digit], 2)
        pair = np.concatenate([np.repeat(digit[..., None], 3, 2), red], 1)
        Image.fromarray(pair).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def translator(negatives, tmp_path_factory):
    """A model that learned to make red negatives of digits."""
    path = tmp_path_factory.mktemp("translate") / "run"
    options = ["--data.pairs", "left-to-right", "--train.steps", "250", *SMALL, *QUICK]
    command = ["train", "flow-matching", "--data", str(negatives), "--out", str(path)]
    assert main([*command, *options]) == 0
    return path


def test_it_enlarges_what_it_was_given(poiesis, enlarger, tmp_path):
    out = tmp_path / "out"
    code, text, err = poiesis("upscale", enlarger, "--limit", 40, "--quiet", "--json", "-o", out)
    assert code == 0, err
    found = json.loads(text)
    assert found["pictures"] == found["made"] == 40
    assert found["psnr"] > found["psnr_plain"] > 5
    assert "ssim" not in found  # digits are smaller than its window
    names = sorted(path.name for path in out.glob("test-*.png"))
    assert len(names) == 40 and (out / "before-after.png").exists()
    made = np.asarray(Image.open(out / names[0]), float)
    row = open_data("digits").splits["test"].x[int(names[0][5:-4])][0].numpy()
    # What it makes has the averages of the real digit, whose 17 levels are 16 apart.
    means = made.reshape(4, 2, 4, 2).mean((1, 3)), row.reshape(4, 2, 4, 2).mean((1, 3)) * 255 / 16
    assert np.abs(means[0] - means[1]).max() < 17


def test_files_come_back_larger_under_their_names(poiesis, enlarger, tmp_path):
    small = tmp_path / "small" / "deep"
    small.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((4, 4), 90 * i, np.uint8)).save(small / f"{i}.png")
    out = tmp_path / "out"
    options = ["--variants", 2, "--seed", 5, "--sampling.steps", 3, "--quiet", "-o", out]
    code, text, err = poiesis("upscale", enlarger, tmp_path / "small", *options)
    assert code == 0, err
    assert "4 pictures of 2" in text and "psnr" not in text
    with Image.open(out / "deep" / "1-2.png") as picture:
        assert picture.size == (8, 8)
    first = (out / "deep" / "1-1.png").read_bytes()
    assert first != (out / "deep" / "1-2.png").read_bytes()
    assert poiesis("upscale", enlarger, tmp_path / "small", *options)[0] == 0
    assert (out / "deep" / "1-1.png").read_bytes() == first


def test_it_translates_what_it_never_saw(poiesis, translator, tmp_path):
    code, text, err = poiesis("translate", translator, "--quiet", "--json")
    assert code == 0, err
    found = json.loads(text)
    # The mean red negative would reach about 11 dB, the picture itself 3.
    assert found["psnr"] > 15 > found["psnr_plain"] + 5, found
    digit = np.zeros((8, 8), np.uint8)
    digit[1:7, 3:5] = 255
    Image.fromarray(digit).save(tmp_path / "one.png")
    assert poiesis("translate", translator, tmp_path / "one.png", "-o", tmp_path / "out")[0] == 0
    made = np.asarray(Image.open(tmp_path / "out" / "one.png"), float)
    assert made[..., 0][digit == 0].mean() > 180 > 120 > made[..., 0][digit == 255].mean()
    assert made[..., 1:].mean() < 30


def test_evaluation_compares_with_the_real_ones_and_with_no_model(translator):
    found = package.evaluate(translator, package_config())
    assert found["psnr"].value > found["psnr_plain"].value + 5
    assert found["psnr"].passport.split == "test"
    assert found["psnr_plain"].passport.settings["made_by"] == "the input"
    assert found["psnr"].passport.n_real == found["psnr"].passport.n_generated == 24


def package_config():
    from poiesis.evaluation.protocol import EvaluationConfig

    return EvaluationConfig(extractor="random", likelihood_rows=10)


def test_samples_of_such_a_run_need_no_input(poiesis, translator, tmp_path):
    code, _, err = poiesis("sample", translator, "-n", 3, "--quiet", "-o", tmp_path / "new")
    assert code == 0, err
    assert len(list((tmp_path / "new").glob("0*.png"))) == 3
    with Image.open(tmp_path / "new" / "grid.png") as sheet:
        assert sheet.width == sheet.height  # three of each: pictures, samples, real images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "--sampling.step", "2"], "did you mean"),
        (["upscale", "--variants", "0"], "--variants = 0 is"),
        (["sample", "--class", "3"], "learned images given pictures, no classes"),
    ],
)
def test_mistakes_get_one_line(refused, enlarger, arguments, words):
    verb, *rest = arguments
    assert words in refused(verb, enlarger, *rest)


def test_pictures_and_models_that_do_not_fit_are_refused(
    refused, enlarger, translator, vae_run, tmp_path
):
    Image.new("L", (8, 8)).save(tmp_path / "large.png")
    out = tmp_path / "out"
    line = refused("upscale", enlarger, tmp_path / "large.png", "-o", out)
    assert "large.png: the image has 8 x 8 pixels, not 4 x 4; resize or crop it first" in line
    line = refused("upscale", translator, "-o", out)
    assert "makes images as large as its pictures: use poiesis translate" in line
    line = refused("translate", vae_run)
    assert "can't translate; models that can: " in line and "ddpm" in line
    assert not out.exists()


def test_models_that_learned_no_pictures_say_how_to(refused, tmp_path):
    how = ["--train.steps", "1", *SMALL, "--train.threads", "1", "--train.grids", "0", "--quiet"]
    run = tmp_path / "run"
    assert main(["train", "ddpm", "--data", "digits", "--out", str(run), *how]) == 0
    assert "learned to translate nothing; train one with --model.task" in refused("translate", run)
