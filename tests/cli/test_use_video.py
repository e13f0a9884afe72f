"""From clips to clips: training, samples that are data again, numbers, report, walks."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from poiesis.cli.main import main
from poiesis.files import make_gif, pictures_of

QUICK = ["--train.threads", "1", "--quiet"]
TINY = ["--model.widths", "8", "--model.latent-dim", "4", "--model.motion-dim", "2"]
READ = ["--data.frames", "4"]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Sixteen clips of a bar that moves down or to the right."""
    folder = tmp_path_factory.mktemp("clips") / "bars"
    for k in range(16):
        frames = np.zeros((7, 8, 8, 1), np.uint8)
        for t, frame in enumerate(frames):
            (frame if k % 2 else frame.swapaxes(0, 1))[(k // 2 + t) % 7 :][:2] = 200 + k
        path = folder / ("down" if k % 2 else "right") / f"{k:02d}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_gif(pictures_of(frames), 10))
    return folder


@pytest.fixture(scope="module")
def run(clips):
    """A MoCoGAN by class, trained for three steps."""
    path = clips.parent / "run"
    how = ["--data", str(clips), *READ, *TINY, "--model.conditional", "true"]
    how += ["--train.steps", "3", "--train.grids", "1", *QUICK]
    assert main(["train", "mocogan", *how, "--out", str(path)]) == 0
    return path


def test_data_shows_clips(poiesis, clips, tmp_path):
    for ending in ("png", "gif"):
        path = tmp_path / f"look.{ending}"
        code, out, err = poiesis("data", clips, *READ, "--preview", path)
        assert code == 0, err
        assert "shape    grid 1x4x8x8, levels (256 levels)" in out
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == (4 if ending == "gif" else 1)


def test_samples_are_data_again(poiesis, run, tmp_path):
    code, _, err = poiesis("sample", run, "-n", 6, "--class", "down", "-o", tmp_path, "--quiet")
    assert code == 0, err
    names = [f"{k:05d}.gif" for k in range(6)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*names, *(f"{name}.json" for name in names), "grid.png"]
    )
    code, out, err = poiesis("data", tmp_path, *READ, "--json")
    assert code == 0, err
    trained_on = json.loads((run / "data.json").read_text())["spec"]
    assert json.loads(out)["spec"] == trained_on
    code, out, _ = poiesis("reproduce", tmp_path / "00003.gif")
    assert code == 0 and "identical" in out


@needs_ffmpeg
def test_films_on_request(poiesis, run, tmp_path):
    code, _, err = poiesis("sample", run, "-n", 4, "--format", "mp4", "-o", tmp_path, "--quiet")
    assert code == 0, err
    assert (tmp_path / "00003.mp4").read_bytes()[4:8] == b"ftyp"
    code, out, err = poiesis("data", tmp_path, *READ, "--json")
    assert code == 0, err
    assert json.loads(out)["spec"] == json.loads((run / "data.json").read_text())["spec"]
    code, out, _ = poiesis("reproduce", tmp_path / "00001.mp4")
    assert code == 0 and "identical" in out


def test_numbers_report_and_walk(poiesis, run, tmp_path):
    code, out, err = poiesis("evaluate", run, "--samples", 20, "--json", "--quiet")
    assert code == 0, err
    numbers = {n["name"] for n in json.loads(out)["numbers"]}
    assert {"frame_fid", "motion_fid", "coverage", "sampling_speed"} <= numbers
    assert poiesis("report", run, "--samples", 16)[0] == 0
    page = (run / "report.html").read_text()
    assert len(re.findall("data:image/gif;base64,", page)) == 1
    assert "motion FID" in page and "clips&#39; random features" in page
    for ending in ("png", "gif"):
        path = tmp_path / f"walk.{ending}"
        code, _, err = poiesis("latent", run, "walk", "-o", path, "--quiet")
        assert code == 0 and path.exists(), err


def test_help_without_data_of_its_kind(poiesis):
    code, out, _ = poiesis("train", "mocogan", "--help")
    assert code == 0 and "--model.motion-dim" in out and "--data moving-digits" in out


def test_mistakes(refused, run, vae_run, clips, tmp_path, monkeypatch):
    assert "learns video, grey or RGB, not grid 1x8x8" in refused(
        "train", "mocogan", "--data", "digits", "--train.steps", 1
    )
    assert "not grid 1x4x8x8" in refused(
        "train", "dcgan", "--data", clips, *READ, "--train.steps", 1
    )
    assert "has 7 frames, fewer than the 16 of a window" in refused("data", clips)
    out = tmp_path / "out"
    line = refused("sample", vae_run, "--format", "mp4", "-n", 1, "-o", out, "--quiet")
    assert "is for video" in line and not out.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refused("sample", run, "--format", "mp4", "-n", 1, "-o", out, "--quiet")
    assert "writing .mp4 needs ffmpeg on the PATH" in line and not out.exists()
    assert "learned grid 1x4x8x8" in refused("detect", run, "--quiet")
