"""A toy of the plane from the command line: listed, trained on, drawn, counted, reported."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from poiesis.data.toys import TOYS

QUICK = ["--train.threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A VAE of the ring by mode, trained for some seconds."""
    from poiesis.cli.main import main

    path = tmp_path_factory.mktemp("toys") / "run"
    how = ["--data", "ring", "--train.steps", "500", "--train.grids", "2", *QUICK]
    assert main(["train", "cvae", *how, "--out", str(path)]) == 0
    return path


def test_toys_are_listed_and_described(poiesis, tmp_path):
    code, out, _ = poiesis("data", "--json")
    assert code == 0
    assert {json.loads(out)["sets"][name] for name in TOYS} == {"built in"}
    code, out, err = poiesis("data", "grid", "--preview", tmp_path / "grid.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["splits"] == {"train": 45_000, "validation": 5_000, "test": 5_000}
    assert len(found["classes"]["train"]) == 25
    with Image.open(tmp_path / "grid.png") as grid:
        colours = grid.convert("RGB").getcolors(1 << 20)
    assert colours is not None and len(colours) > 20


def test_a_run_draws_the_plane_and_counts_modes(poiesis, run, tmp_path):
    grids = sorted((run / "samples").glob("step-*.png"))
    assert len(grids) == 2
    # Points, and beside them the density: wider than high.
    with Image.open(grids[-1]) as grid:
        width, height = grid.size
    assert width > 1.7 * height
    code, _, err = poiesis("sample", run, "-n", 400, "-o", tmp_path / "new.csv", "--quiet")
    assert code == 0, err
    with (tmp_path / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["x", "y", "mode"]
    x = np.array([[float(r["x"]), float(r["y"])] for r in rows])
    mode = np.array([int(r["mode"]) for r in rows])
    # In the units of the data each class lies at its own mode.
    distance = np.linalg.norm(x - TOYS["ring"].modes[mode], axis=1)
    assert np.median(distance) < 0.3
    code, out, err = poiesis("evaluate", run, "-n", 1000, "--json", "--quiet")
    assert code == 0, err
    numbers = {n["name"]: n for n in json.loads(out)["numbers"]}
    assert numbers["mode_kl"]["value"] < 0.1 and numbers["modes_covered"]["unit"] == "of 8"
    assert 0 < numbers["high_quality"]["value"] <= 1
    assert numbers["high_quality"]["passport"]["settings"]["true"] == 0.9889
    code, _, err = poiesis("report", run)
    assert code == 0, err
    page = (run / "report.html").read_text()
    assert "within three sigma" in page and page.count("data:image/png;base64,") == 3


def test_options_of_tables_are_refused(refused):
    line = refused("train", "gan", "--data", "moons", "--data.label", "x", "--train.steps", 2)
    assert line.strip().endswith("data.label is for tables; moons has its columns and classes")
