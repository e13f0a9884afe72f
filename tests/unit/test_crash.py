"""Whatever write operation a crash or a full disk hits, the run stays whole and goes on exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults import NEEDS_SPACE, Faults, full_disk, killed_at

from poiesis.errors import PoiesisWarning, RunError
from poiesis.runs import Run, write_atomic


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Don't wait for the disk: a kill loses nothing that was written; test_runs has the order."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# -- one save ------------------------------------------------------------------------------------


def files(value: float) -> dict[str, Any]:
    tensors = {"w": torch.full((50, 2), value)}
    return {
        "model.safetensors": tensors,
        "extra.safetensors": {"n": torch.tensor(value)},
        "state.json": {"value": value},
    }


def value_of(run: Run, which: str = "latest") -> float:
    """Return what a checkpoint holds, all files agreeing."""
    found = run.checkpoint(which)
    value = found.json("state.json")["value"]
    assert torch.equal(found.tensors("model.safetensors")["w"], torch.full((50, 2), float(value)))
    return value


@dataclass(frozen=True)
class Save:
    """A save, what was there before it, and what the pointers may give after a crash in it."""

    before: tuple[tuple[int, float, dict[str, Any]], ...]
    step: int
    value: float
    options: dict[str, Any]
    which: str = "latest"


BEST = {"kind": "best", "pointer": "best", "keep": 1}
SAVES = {
    "the first": Save((), 1, 1.0, {}),
    "another": Save(((1, 1.0, {}),), 2, 2.0, {"keep": 1}),
    "a third": Save(((1, 1.0, {}), (2, 2.0, {})), 3, 3.0, {"keep": 2}),
    "the same step": Save(((5, 5.0, {}),), 5, 6.0, {"keep": 2}),
    "the same step, one before": Save(((4, 4.0, {}), (5, 5.0, {})), 5, 6.0, {"keep": 1}),
    "an earlier step": Save(((4, 4.0, {}), (9, 9.0, {})), 7, 7.0, {"keep": 2}),
    "best": Save(((1, 0.5, {}), (1, 1.0, BEST)), 2, 2.0, BEST, "best"),
    "best, the same step": Save(((1, 0.5, {}), (1, 1.0, BEST)), 1, 2.0, BEST, "best"),
}


def prepared(save: Save, path: Path) -> Run:
    run = Run.create(path, "digits", "vae")
    run.write_config({"name": "vae"})
    for step, value, options in save.before:
        run.save_checkpoint(step, files(value), **options)
    return run


def do(run: Run, save: Save, value: float | None = None) -> None:
    run.save_checkpoint(save.step, files(value or save.value), **save.options)


def names(run: Run) -> list[str]:
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def check_after(run: Run, save: Save, clean: Run) -> None:
    """Old or new and no damage to warn of; and the next saves work and leave nothing behind."""
    run = Run.open(run.path)
    old = [
        value
        for _, value, options in save.before
        if options.get("kind") == save.options.get("kind")
    ]
    if old or run.has_checkpoint(save.which):
        assert value_of(run, save.which) in (*old[-1:], save.value)
    if save.which != "latest":
        assert value_of(run) == 0.5
    do(run, save, 77.0)
    assert value_of(run, save.which) == 77.0
    assert names(run) == names(clean)
    run.save_checkpoint(save.step + 1, files(78.0), **save.options)
    assert value_of(run, save.which) == 78.0


@pytest.mark.parametrize("name", list(SAVES))
def test_killed_at_every_write_operation_of_a_save(name, tmp_path):
    save = SAVES[name]
    clean = prepared(save, tmp_path / "clean")
    with Faults() as faults:
        do(clean, save)
    assert {"open", "write", "fsync", "replace", "mkdir"} <= set(faults.seen)
    assert ("rmdir" in faults.seen) == any(
        key in name for key in ("another", "third", "same", "earlier", "best")
    )
    for at in range(len(faults.seen)):
        run = prepared(save, tmp_path / str(at))
        assert killed_at(at, lambda run=run: do(run, save))
        check_after(run, save, clean)
    run = prepared(save, tmp_path / "last")
    assert not killed_at(len(faults.seen), lambda: do(run, save))


def test_killed_again_while_mending(tmp_path):
    """A second crash, in the save that follows a first one at a rename, at every other write."""
    save = SAVES["the same step"]
    clean = prepared(save, tmp_path / "clean")
    with Faults() as faults:
        do(clean, save)
    renames = [at for at, name in enumerate(faults.seen) if name == "replace"]
    for first in renames:
        second = 0
        while True:
            run = prepared(save, tmp_path / f"{first}-{second}")
            assert killed_at(first, lambda run=run: do(run, save))
            if not killed_at(second, lambda run=run: do(run, save)):
                break
            check_after(run, save, clean)
            second += 2
        assert second >= 18


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", list(SAVES))
def test_full_disk_at_every_operation_of_a_save(name, lasting, tmp_path):
    save = SAVES[name]
    clean = prepared(save, tmp_path / "clean")
    do(clean, save)
    at = 0
    while True:
        run = prepared(save, tmp_path / str(at))
        with Faults(at, full_disk, lasting=lasting, only=NEEDS_SPACE) as faults:
            if len(faults.seen) <= at:
                try:
                    do(run, save)
                except RunError as error:
                    text = str(error)
                    assert text.endswith(
                        "No space left on device; free some space and use --resume"
                    )
                    assert "\n" not in text
                else:
                    break
        assert not [name for name in names(run) if name.endswith(".tmp")]
        check_after(run, save, clean)
        at += 1
    assert at == len(faults.seen) >= 12


# -- small files ---------------------------------------------------------------------------------


def metrics(run: Run) -> list[int]:
    return [line["step"] for line in run.metrics()]


SMALL: dict[str, tuple[Callable[[Run], Any], Callable[[Run], Any], tuple[Any, Any]]] = {
    "a JSON file": (
        lambda run: run.write_json("schedule.json", {"n": 2}),
        lambda run: run.read_json("schedule.json")["n"],
        (1, 2),
    ),
    "config.yaml": (lambda run: run.write_config({"n": 2}), lambda run: run.config()["n"], (1, 2)),
    "going back": (lambda run: run.rewind(2), metrics, ([1, 2, 3, 4], [1, 2])),
    "a line": (lambda run: run.log({"step": 5}), metrics, ([1, 2, 3, 4], [1, 2, 3, 4, 5])),
}


def with_small_files(path: Path) -> Run:
    run = Run.create(path, "digits", "vae")
    run.write_config({"n": 1})
    run.write_json("schedule.json", {"n": 1})
    for step in range(1, 5):
        run.log({"step": step, "loss": 1 / step})
    return run


@pytest.mark.parametrize("fault", ["kill", "full disk"])
@pytest.mark.parametrize("name", list(SMALL))
def test_small_files_are_old_or_new(name, fault, tmp_path):
    act, read, (old, new) = SMALL[name]
    at = 0
    while True:
        run = with_small_files(tmp_path / str(at))
        if fault == "kill":
            if not killed_at(at, lambda run=run: act(run)):
                break
        else:
            with Faults(at, full_disk, only=NEEDS_SPACE):
                try:
                    act(run)
                except RunError as error:
                    assert str(error).endswith("; free some space and use --resume")
                else:
                    break
        assert read(run) in (old, new)
        run.rewind(4)  # what a resume does first: a half line goes
        act(run)
        assert read(run) == new
        at += 1
    assert at >= 2
    assert read(run) == new


# -- damage --------------------------------------------------------------------------------------


def two_checkpoints(path: Path) -> Run:
    return prepared(Save(((1, 1.0, {}), (2, 2.0, {})), 3, 3.0, {}), path)


FILES = ("model.safetensors", "extra.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_seen(file, tmp_path):
    run = two_checkpoints(tmp_path / "run")
    path = run.checkpoint().path / file
    data = path.read_bytes()
    places = range(len(data)) if file == "manifest.json" else {0, 7, len(data) // 2, len(data) - 1}
    for place in places:
        for bit in (1, 0x20, 0x80):
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            if file == "manifest.json" and bit == 0x20 and value_is_same(path, data):
                continue
            with pytest.warns(PoiesisWarning, match="going back to step-00000001"):
                assert value_of(run) == 1.0


def value_is_same(path: Path, data: bytes) -> bool:
    """Return whether a changed manifest still says the same (a space more or less)."""
    try:
        return json.loads(path.read_bytes()) == json.loads(data)
    except ValueError:
        return False


@pytest.mark.parametrize("file", FILES)
def test_cut_and_missing_files_are_seen(file, tmp_path):
    run = two_checkpoints(tmp_path / "run")
    path = run.checkpoint().path / file
    length = path.stat().st_size
    for size in (length - 1, length // 2, 0, None):
        path.unlink() if size is None else os.truncate(path, size)
        with pytest.warns(PoiesisWarning, match="going back to step-00000001"):
            assert value_of(run) == 1.0


POINTERS = {
    "empty": b"",
    "not text": b"\xff\xfe\x00\x01",
    "zeros": b"\0" * 13,
    "another word": b"newest",
    "a step that is not there": b"step-00000007",
    "out of the run": b"../../other/checkpoints/step-00000001",
    "absolute": b"/etc",
}


@pytest.mark.parametrize("name", list(POINTERS))
def test_bad_pointer_gives_the_newest_with_a_warning(name, tmp_path):
    two_checkpoints(tmp_path / "other")
    run = two_checkpoints(tmp_path / "run")
    (run.path / "checkpoints" / "latest").write_bytes(POINTERS[name])
    with pytest.warns(PoiesisWarning, match="going back to step-00000002"):
        found = run.checkpoint()
    assert found.path.parent == run.path / "checkpoints"
    run.save_checkpoint(3, files(3.0))
    assert value_of(run) == 3.0


def test_lost_pointers_need_no_word(tmp_path):
    run = two_checkpoints(tmp_path / "run")
    run.save_checkpoint(1, files(1.0), **BEST)
    for pointer in ("latest", "best"):
        (run.path / "checkpoints" / pointer).unlink()
    assert run.has_checkpoint() and run.has_checkpoint("best")
    assert (value_of(run), value_of(run, "best")) == (2.0, 1.0)
    with pytest.raises(RunError, match=r"no checkpoint '\.\./other'; use latest"):
        run.checkpoint("../other")


def test_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    run = two_checkpoints(tmp_path / "run")
    path = run.checkpoint().path / "manifest.json"
    outside = tmp_path / "secret.json"
    write_atomic(outside, "{}")
    from poiesis.runs import sha256

    path.write_text(json.dumps({"sha256": {"../../../secret.json": sha256(outside)}}))
    with pytest.warns(PoiesisWarning, match="names a file outside it"):
        assert value_of(run) == 1.0


def test_after_falling_back_the_damaged_one_does_not_count(tmp_path):
    """Of 1, 2 and a damaged 3, two are kept: after step 2 again and 4, these and nothing else."""
    run = two_checkpoints(tmp_path / "run")
    run.save_checkpoint(9, files(9.0))
    (run.path / "checkpoints" / "step-00000009" / "state.json").unlink()
    run.save_checkpoint(4, files(4.0))
    assert names(run) == ["latest", "step-00000002", "step-00000004"]
