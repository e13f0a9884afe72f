"""The run folder: atomic files, hashed checkpoints, pointers, what a crash may leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from poiesis import runs
from poiesis.errors import PoiesisWarning, RunError
from poiesis.runs import Run


@pytest.fixture
def run(tmp_path) -> Run:
    made = Run.create(tmp_path / "run", "digits", "vae")
    made.write_config({"name": "vae"})
    return made


def files(value: float) -> dict:
    tensors = {"w": torch.full((3, 2), value), "n": torch.tensor(int(value))}
    return {"model.safetensors": tensors, "state.json": {"value": value}}


def test_checkpoint_comes_back_as_it_was(run):
    strided = torch.arange(6.0).reshape(2, 3).t()
    shared = torch.arange(3.0)
    tensors = {"strided": strided, "a": shared, "b": shared, "half": torch.ones(2).bfloat16()}
    path = run.save_checkpoint(7, {"model.safetensors": tensors, "state.json": {"x": [1, None]}})
    found = run.checkpoint()
    assert (found.step, found.path) == (7, path)
    back = found.tensors("model.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)
    assert found.json("state.json") == {"x": [1, None]}
    assert found.tensors("ema.safetensors") == {}
    for name, digest in found.hashes.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest


def test_the_newest_are_kept_and_the_best_besides(run):
    run.save_checkpoint(2, files(2), kind="best", pointer="best", keep=1)
    for step in (1, 2, 3, 10, 11):
        run.save_checkpoint(step, files(step), keep=2)
    run.save_checkpoint(11, files(12), kind="best", pointer="best", keep=1)
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["best", "best-00000011", "latest", "step-00000010", "step-00000011"]
    assert run.checkpoint(10).json("state.json") == {"value": 10}
    assert run.checkpoint("11").json("state.json") == {"value": 11}
    assert run.checkpoint("best").json("state.json") == {"value": 12}
    with pytest.raises(RunError, match="no checkpoint of step 3; it has: 11, 10"):
        run.checkpoint(3)


def test_a_step_written_again_replaces_the_old(run):
    run.save_checkpoint(5, files(1))
    run.save_checkpoint(5, files(2))
    assert run.checkpoint().json("state.json") == {"value": 2}


def test_pointer_to_nothing_falls_back(run):
    run.save_checkpoint(1, files(1))
    (run.path / "checkpoints" / "latest").write_text("step-00000009")
    with pytest.warns(PoiesisWarning, match="going back to step-00000001"):
        assert run.checkpoint().step == 1


def test_damaged_best_falls_back_to_the_latest(run):
    run.save_checkpoint(1, files(1), kind="best", pointer="best", keep=1)
    run.save_checkpoint(2, files(2))
    (run.path / "checkpoints" / "best-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.warns(PoiesisWarning, match=r"is damaged; going back to step-00000002"):
        assert run.checkpoint("best").step == 2


def test_every_file_reaches_the_disk_before_the_rename(run, monkeypatch):
    """The order that survives a crash: sync each file, the folder, rename, sync the parent."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run.save_checkpoint(4, files(4))
    assert events == [
        "model.safetensors",
        "state.json",
        "manifest.json",
        ".step-00000004.tmp",
        "rename to step-00000004",
        "checkpoints",
        ".latest.tmp",
        "rename to latest",
        "checkpoints",
    ]


@pytest.mark.parametrize("at", range(1, 8))
def test_crash_at_any_sync_leaves_a_whole_checkpoint(run, monkeypatch, at):
    """A crash is an exception that nothing catches, at the n-th sync of the second save."""

    class Crash(BaseException):
        pass

    run.save_checkpoint(1, files(1))
    left = [at]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.suppress(Crash):
        run.save_checkpoint(2, files(2))
    monkeypatch.undo()
    found = run.checkpoint()
    assert found.step in (1, 2)
    assert found.json("state.json") == {"value": found.step}
    assert run.save_checkpoint(3, files(3)).name == "step-00000003"
    assert run.checkpoint().step == 3


def test_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    runs.write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(RunError, match=r"file': No space; free some space"):
        runs.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_metrics_survive_a_cut_line_and_rewind(run):
    for step in range(1, 5):
        run.log({"step": step, "loss": 1 / step})
    run.log({"step": 5, "loss": float("nan")})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[4]["loss"] is None
    run.rewind(3)
    text = (run.path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2, 3]


def test_finding_runs(tmp_path, run, monkeypatch):
    newer = Run.create(tmp_path / "newer", "digits", "vae")
    newer.write_config({"name": "gan"})
    os.utime(newer.path / "config.yaml", (2e9, 2e9))
    assert Run.open(tmp_path).path == newer.path
    assert Run.open(run.path).config() == {"name": "vae"}
    with pytest.raises(RunError, match="already holds a run: continue it with --resume"):
        Run.create(run.path, "digits", "vae")
    with pytest.raises(RunError, match="there is no run folder"):
        Run.open(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"can't write .*check the folder"):
        Run.create(tmp_path / "file" / "run", "digits", "vae")
    monkeypatch.chdir(tmp_path)
    first, second = (Run.create(None, "my data/set.zip", "vae") for _ in range(2))
    assert first.path.parent == Path("runs/set-vae")
    assert first.path != second.path


def test_damaged_json_and_config(run):
    (run.path / "data.json").write_text("{")
    with pytest.raises(RunError, match="is damaged: not valid JSON"):
        run.read_json("data.json")
    assert run.read_json("none.json", 5) == 5


def test_environment_names_what_results_depend_on():
    found = runs.environment()
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert set(found) >= {"python", "platform", "processor", "gpu", "date"}
