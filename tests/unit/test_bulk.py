"""Samples in shards: the same bytes however the work was cut, and after any interruption."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from poiesis.data import open_data
from poiesis.errors import ConfigError, RunError
from poiesis.models.samples import sample
from poiesis.training.verb import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bulk") / "run"
    options = {"steps": 3, "grids": 0, "validations": 0, "checkpoints": 1}
    train("vae", "digits", out=out, quiet=True, **options)
    return out


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.zip"))}


def draw(run: Path, out: Path, n: int = 50, **options):
    return sample(run, n, out=out, shard_size=20, batch_size=8, **options)


def test_shards_hold_the_samples_in_order_and_are_data_again(run, tmp_path):
    paths = draw(run, tmp_path / "a")
    assert [path.name for path in paths] == [f"shard-0000{k}.zip" for k in range(3)]
    names = [name for path in paths for name in zipfile.ZipFile(path).namelist()]
    assert names == [f"{k:05d}.png" for k in range(50)]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [(s["first"], s["count"]) for s in manifest["shards"]] == [(0, 20), (20, 20), (40, 10)]
    single = sample(run, 50, out=tmp_path / "b", batch_size=8)
    with zipfile.ZipFile(paths[1]) as archive, archive.open("00020.png") as file:
        from PIL import Image

        assert Image.open(file).tobytes() == Image.open(single[20]).tobytes()
    again = open_data(str(paths[0]))
    assert sum(len(split) for split in again.splits.values()) == 20


@pytest.mark.parametrize("batches", [0, 2, 3, 5, 6])
def test_an_interrupted_call_goes_on(run, tmp_path, batches):
    draw(run, tmp_path / "straight")
    seen = []

    def interrupt(count: int) -> None:
        seen.append(count)
        if len(seen) > batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(run, tmp_path / "cut", progress=interrupt)
    finished = shards(tmp_path / "cut")
    times = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished}
    assert len(finished) == batches // 3
    draw(run, tmp_path / "cut")
    assert shards(tmp_path / "cut") == shards(tmp_path / "straight")
    assert all((tmp_path / "cut" / k).stat().st_mtime_ns == t for k, t in times.items())
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {"manifest.json", *shards(tmp_path / "straight")}


def test_a_damaged_shard_is_drawn_again(run, tmp_path):
    draw(run, tmp_path)
    before = shards(tmp_path)
    path = tmp_path / "shard-00001.zip"
    path.write_bytes(path.read_bytes()[:-7])
    draw(run, tmp_path)
    assert shards(tmp_path) == before
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [s["file"] for s in manifest["shards"]] == sorted(before)


def test_other_samples_in_the_folder_are_refused_by_name(run, tmp_path):
    draw(run, tmp_path, seed=1)
    before = shards(tmp_path)
    with pytest.raises(RunError, match="seed = 1, not 2: choose another --out"):
        draw(run, tmp_path, seed=2)
    with pytest.raises(RunError, match="n = 50, not 60"):
        draw(run, tmp_path, n=60, seed=1)
    assert shards(tmp_path) == before
    with pytest.raises(ConfigError, match="shard_size = 0"):
        sample(run, 5, out=tmp_path / "c", shard_size=0)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="is damaged: remove it"):
        draw(run, tmp_path, seed=1)
