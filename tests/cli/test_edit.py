"""`poiesis edit` and `poiesis inpaint`: files in, files out, known pixels kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from poiesis.cli.main import main
from poiesis.data import open_data


@pytest.fixture(scope="module", params=["ddpm", "flow-matching"])
def diffusion(request, tmp_path_factory):
    """A model trained for some seconds on digits."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    arguments = ["--data", "digits", "--train.steps", "150", "--train.threads", "1", "--quiet"]
    arguments += ["--train.grids", "0", "--model.channels", "8", "--model.blocks", "1"]
    assert main(["train", request.param, *arguments, "--out", str(path)]) == 0
    return path


def read(folder, names):
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in names])


def test_an_edit_keeps_more_the_weaker_it_is(poiesis, diffusion, tmp_path):
    data = open_data("digits")
    originals = None
    distances = []
    for strength in (0.05, 0.9):
        out = tmp_path / str(strength)
        options = ["--strength", strength, "--limit", 12, "--quiet", "--json", "-o", out]
        code, text, err = poiesis("edit", diffusion, *options)
        assert code == 0, err
        taken = {"evaluations": round(20 * strength)}  # the share of dpm-solver++'s 20
        assert json.loads(text) == {"pictures": 12, "made": 12, **taken, "out": str(out)}
        names = sorted(path.stem for path in out.glob("test-*.png"))
        assert len(names) == 12 and (out / "before-after.png").exists()
        rows = data.splits["test"].x[[int(name.split("-")[1]) for name in names]]
        originals = np.stack([np.asarray(data.codec.decode(row)) for row in rows])
        distances.append(np.abs(read(out, names).astype(float) - originals).mean())
    assert distances[0] < 0.6 * distances[1]


def test_known_pixels_come_back_bit_for_bit(poiesis, diffusion, tmp_path):
    data = open_data("digits")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        data.codec.decode(data.splits["test"].x[number]).save(folder / f"{number}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    options = ["--mask", tmp_path / "mask.png", "--variants", 2, "--sampling.steps", 6]
    options += ["--resamples", 2, "--quiet", "-o", out]
    code, _, err = poiesis("inpaint", diffusion, folder, *options)
    assert code == 0, err
    before = read(folder, ["0", "1", "2"])
    for variant in (1, 2):
        after = read(out, [f"{number}-{variant}" for number in range(3)])
        assert np.array_equal(after[:, mask == 0], before[:, mask == 0])
        assert not np.array_equal(after[:, mask > 0], before[:, mask > 0])
    first = (out / "0-1.png").read_bytes()
    assert first != (out / "0-2.png").read_bytes()
    assert poiesis("inpaint", diffusion, folder, *options)[0] == 0
    assert (out / "0-1.png").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "--strength", "1.5"], "--strength = 1.5 is outside (0, 1]"),
        (["inpaint", "--mask", "middle"], "mask 'middle' is no file and none of left, right"),
        (["inpaint", "--resamples", "0"], "--resamples = 0 is outside [1, 1000]"),
        (["edit", "--class", "eleven"], "eleven"),
        (["edit", "--sampling.guidence", "2"], "did you mean"),
    ],
)
def test_mistakes_get_one_line(refused, diffusion, tmp_path, arguments, words):
    verb, *rest = arguments
    assert words in refused(verb, diffusion, *rest, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_must_fit(refused, diffusion, tmp_path):
    Image.new("L", (9, 8), 255).save(tmp_path / "wide.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "black.png")
    line = refused("inpaint", diffusion, "--mask", tmp_path / "wide.png")
    assert "is 9 x 8 px, the pictures are 8 x 8; resize it" in line
    assert "covers nothing" in refused("inpaint", diffusion, "--mask", tmp_path / "black.png")
