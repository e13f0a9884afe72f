"""`poiesis compress` and `decompress`: every pixel back, and one line for whatever is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import poiesis
from poiesis.apply.compress import archive
from poiesis.cli.main import main
from poiesis.data import open_data

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A VAE trained for some seconds on digits, whose 17 levels it gives probabilities."""
    path = tmp_path_factory.mktemp("packer") / "run"
    steps = ["--train.steps", "300", "--out", str(path)]
    assert main(["train", "vae", "--data", "digits", *steps, *QUICK]) == 0
    return path


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """The test digits in one file."""
    path = tmp_path_factory.mktemp("packed") / "digits.psis"
    assert main(["compress", str(trained), "-o", str(path), "--quiet"]) == 0
    return path


def test_every_pixel_comes_back(poiesis, trained, tmp_path):
    file, folder = tmp_path / "digits.psis", tmp_path / "out"
    code, out, err = poiesis("compress", trained, "-o", file, "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    test = open_data("digits").splits["test"]
    assert found["samples"] == len(test) and found["plain_chunks"] == 0
    assert found["bytes"] == file.stat().st_size
    assert found["bits_per_dim"] == pytest.approx(8 * found["bytes"] / test.x.numel())
    # log2(17) = 4.09 bits would be no model; what zlib makes of the levels is the fallback.
    assert found["bits_per_dim"] < 3.2
    code, out, err = poiesis("decompress", file, "-o", folder, "--quiet")
    assert code == 0, err
    assert f"{len(test)} images, verified" in out
    assert len(list(folder.iterdir())) == len(test)
    codec = open_data("digits").codec
    for number in (0, 7, len(test) - 1):
        wanted = np.asarray(codec.decode(test.x[number]))
        np.testing.assert_array_equal(pixels(folder / f"test-{number:06d}.png"), wanted)


def test_pictures_keep_their_names(poiesis, refused, trained, tmp_path):
    test = open_data("digits")
    for number, name in enumerate(["b/two.png", "a/one.bmp", "a/three.png"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        test.codec.decode(test.splits["test"].x[number]).save(path)
    file = tmp_path / "x.psis"
    assert poiesis("compress", trained, tmp_path / "in", "-o", file, "--quiet")[0] == 0
    assert poiesis("decompress", file, "-o", tmp_path / "out", "--quiet")[0] == 0
    for name in ("b/two", "a/one", "a/three"):
        original = next((tmp_path / "in").glob(f"{name}.*"))
        np.testing.assert_array_equal(pixels(tmp_path / f"out/{name}.png"), pixels(original))
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "in/red.png")
    line = refused("compress", trained, tmp_path / "in", "-o", tmp_path / "y.psis", "--quiet")
    assert "red.png: is 8 x 8 px, RGB" in line and "--quality" in line
    assert not (tmp_path / "y.psis").exists()


def test_quality_trades_size_for_closeness(poiesis, trained, tmp_path):
    found = []
    for quality in (10, 30, 50):
        file = tmp_path / f"{quality}.psis"
        options = ["--quality", quality, "--json", "--quiet"]
        code, out, err = poiesis("compress", trained, "-o", file, *options)
        assert code == 0, err
        found.append(json.loads(out))
    assert all(f["plain_chunks"] == 0 for f in found)
    assert found[0]["bytes"] < found[1]["bytes"] < found[2]["bytes"]
    assert found[0]["psnr"] < found[1]["psnr"] < found[2]["psnr"]
    code, out, err = poiesis("decompress", file, "-o", tmp_path / "out", "--json", "--quiet")
    assert code == 0, err
    test = open_data("digits")
    back = [pixels(tmp_path / f"out/test-{n:06d}.png").astype(float) for n in range(50)]
    wanted = [np.asarray(test.codec.decode(x)) for x in test.splits["test"].x[:50]]
    error = np.stack(back) - np.stack(wanted)
    # The PSNR of the mean error is below the mean PSNR, which is over all digits.
    assert 10 * np.log10(255**2 / np.square(error).mean()) == pytest.approx(
        found[2]["psnr"], abs=1.5
    )


def test_images_that_the_model_can_not_know_are_kept_plain(poiesis, trained, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(30):
        Image.new("L", (8, 8), 255 if number else 0).save(tmp_path / f"in/{number}.png")
    file = tmp_path / "x.psis"
    options = ["-o", file, "--json", "--quiet"]
    code, out, err = poiesis("compress", trained, tmp_path / "in", *options)
    assert code == 0 and json.loads(out)["plain_chunks"] == 1, err
    assert poiesis("decompress", file, "-o", tmp_path / "out", "--quiet")[0] == 0
    assert pixels(tmp_path / "out/1.png").min() == 255


def test_another_number_of_threads_gives_the_same_bytes(packed):
    before = torch.get_num_threads()
    try:
        rows = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows.append(poiesis.decompress(packed).rows)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    test = open_data("digits").splits["test"].x
    assert all(torch.equal(found, test) for found in rows)


def test_a_machine_with_other_arithmetic_is_refused(refused, packed, tmp_path, monkeypatch):
    # What another library does to the last bits, on a chunk of the same size.
    real, here = torch.Tensor.sigmoid, archive._machine()
    monkeypatch.setattr(torch.Tensor, "sigmoid", lambda x: real(x) * (1 - 1e-6))
    line = refused("decompress", packed, "-o", tmp_path / "out", "--quiet")
    assert "decodes to something else" in line and "processor are those it notes" in line
    monkeypatch.setattr(archive, "_machine", lambda: here | {"torch": "1.0"})
    line = refused("decompress", packed, "-o", tmp_path / "out", "--quiet")
    assert "arithmetic differs" in line and "(here 1.0)" in line and "where it was made" in line
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_that_does_not_decode_again_is_kept_plain(trained, tmp_path, monkeypatch):
    calls = iter(range(10**9))
    real = torch.Tensor.sigmoid
    monkeypatch.setattr(torch.Tensor, "sigmoid", lambda x: real(x) * (1 - 1e-4 * next(calls)))
    found = poiesis.compress(trained, out=tmp_path / "x.psis", limit=20)
    assert found.numbers["plain_chunks"] == 1
    monkeypatch.undo()
    assert len(poiesis.decompress(tmp_path / "x.psis").rows) == 20


def test_mistakes(refused, trained, vae_run, text_run, packed, tmp_path):
    out = ["-o", tmp_path / "out", "--quiet"]
    assert "name such a file" in refused("compress", trained, "-o", "x.zip", "--quiet")
    assert "--quality = 0" in refused("compress", trained, "--quality", 0)
    line = refused("compress", text_run, "-o", tmp_path / "t.psis", "--quiet")
    assert "compression takes images" in line
    assert "is not there; say --run" in refused("decompress", packed, "--run", "gone", *out)
    assert "no longer holds the model" in refused("decompress", packed, "--run", vae_run, *out)
    whole = packed.read_bytes()
    bad = tmp_path / "bad.psis"
    for data, says in [
        (whole[:-1], "cut off"),
        (whole[:30], "cut off"),
        (b"", "is no .psis file"),
        (b"PK" + whole, "is no .psis file"),
        (whole[:-9] + b"x" + whole[-8:], "is damaged (chunk 1 of 1)"),
        (whole[:40] + b"xx" + whole[42:], "is damaged (its header)"),
        (whole[:8] + b"\x09\0" + whole[10:], "update poiesis"),
    ]:
        bad.write_bytes(data)
        assert says in refused("decompress", bad, *out)
    assert not (tmp_path / "out").exists()


def test_gans_can_not(refused, tmp_path):
    path = tmp_path / "gan"
    assert (
        main(["train", "gan", "--data", "digits", "--train.steps", "2", "--out", str(path), *QUICK])
        == 0
    )
    line = refused("compress", path, "-o", tmp_path / "x.psis", "--quiet")
    assert "models that do: " in line and "vdvae, transformer" in line and "--quality" in line
    line = refused("compress", path, "-o", tmp_path / "x.psis", "--quality", 50, "--quiet")
    assert "can't encode; models that can: " in line
    shutil.rmtree(path)
