"""A whole training, killed or out of disk at any of its writes, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.faults import NEEDS_SPACE, Faults, full_disk, in_child, killed_at

from poiesis import registry
from poiesis.cli.main import main
from poiesis.data import open_data
from poiesis.data.dataset import DataSet
from poiesis.runs import Checkpoint, Run
from poiesis.training import engine as engines
from poiesis.training import grids, verb

OPTIONS = {"steps": 6, "checkpoints": 3, "validations": 3, "grids": 2, "snapshots": 2}
OPTIONS["log_every"] = 0.0
COMMAND = ["vae", "--data", "digits", "--model.widths", "16", "--model.latent-dim", "2"]
COMMAND += [f"--train.{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
COMMAND += ["--train.threads", "1", "--quiet"]


@cache
def digits() -> DataSet:
    return open_data("digits")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """List a toy, read the data once, and don't wait for the disk: a kill loses nothing written."""
    entry = registry.Entry(
        name="everything",
        target="tests.contract.toys:Everything",
        family="toys",
        accepts=("image",),
        summary="all that a resume must bring back",
    )
    monkeypatch.setitem(registry.MODELS, "everything", entry)
    monkeypatch.setattr(verb, "open_data", lambda source, config: digits())
    monkeypatch.setattr(grids, "SAMPLES", 4)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    digits()


def train(out: Path) -> Run:
    return verb.train(
        "everything", "digits", out=out, quiet=True, opened=digits(), threads=1, **OPTIONS
    )


def contents(run: Run) -> dict[str, Any]:
    """Return all that must not depend on crashes: everything but clocks and machines."""
    found: dict[str, Any] = {}
    for which in ("latest", "best"):
        checkpoint = run.checkpoint(which)
        names = [name for name in checkpoint.hashes if name != "state.json"]
        assert len(names) == (5 if which == "latest" else 2)
        found[which] = {name: checkpoint.hashes[name] for name in names}
        found[f"{which} state"] = {**checkpoint.json("state.json"), "seconds": 0}
        found[f"{which} step"] = checkpoint.step
    found["snapshots"] = {s: Checkpoint(path).hashes for s, path in run.snapshots().items()}
    assert len(found["snapshots"]) == 2
    clocks = ("train/rate", "train/seconds")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [
        {k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines
    ]
    for path in (run.path / "samples").iterdir():
        found[path.name] = path.read_bytes()
    for name in ("schedule.json", "config.yaml", "data.json"):
        found[name] = (run.path / name).read_text()
    return found


def moments(count: int, total: int, everything: bool) -> list[int]:
    """Return write operations to fail at: all of them, or some drawn with a fixed seed."""
    return list(range(total)) if everything else random.Random(count).sample(range(total), count)


def go_on(out: Path, **changes: Any) -> Run:
    """Do what a user does: resume, or train again if there is no run yet."""
    if not (out / "config.yaml").exists():
        return train(out)
    return verb.train(resume=out, quiet=True, **changes)


EVERY = [
    pytest.param(False, id="some"),
    pytest.param(True, id="every", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("every", EVERY)
def test_training_killed_at_a_write_ends_the_same(every, tmp_path):
    whole = contents(train(tmp_path / "whole"))
    with Faults() as faults:  # the second time: modules write caches of their own at first
        train(tmp_path / "counted")
    assert len(faults.seen) > 150
    for at in moments(15, len(faults.seen), every):
        out = tmp_path / str(at)
        assert killed_at(at, lambda out=out: train(out))
        assert contents(go_on(out)) == whole, (at, faults.seen[at])


@pytest.mark.parametrize("every", EVERY)
def test_resume_killed_at_a_write_ends_the_same(every, tmp_path):
    """The resume also makes the run longer, so that it changes config.yaml and schedule.json."""
    start = train(tmp_path / "start").path

    def longer(name: str) -> Path:
        return shutil.copytree(start, tmp_path / name)

    out = longer("whole")
    with Faults() as faults:
        verb.train(resume=out, quiet=True, steps=9)
    whole = contents(Run(out))
    assert whole["latest step"] == 9
    for at in moments(12, len(faults.seen), every):
        out = longer(str(at))
        assert killed_at(at, lambda out=out: verb.train(resume=out, quiet=True, steps=9))
        asked = Run(out).config()["train"]["steps"]
        again = verb.train(resume=out, quiet=True)
        assert again.checkpoint().step == asked
        assert contents(go_on(out, steps=9)) == whole, (at, faults.seen[at])


def test_start_on_another_run_killed_at_a_write_can_be_started_again(tmp_path, monkeypatch):
    """Its part is copied before config.yaml is written; a half copy is no obstacle."""
    target = "tests.contract.toys:OnAnother"
    entry = registry.Entry(name="two", target=target, family="toys", accepts=("image",), summary="")
    monkeypatch.setitem(registry.MODELS, "two", entry)
    options = {"steps": 1, "grids": 0, "validations": 0, "checkpoints": 1, "threads": 1}
    options |= {"quiet": True, "opened": digits()}
    sizes = {"widths": (16,), "latent_dim": 3}
    first = verb.train("vae", "digits", config={"model": sizes}, out=tmp_path / "1", **options)
    part = {"model": {"part": str(first.path)}}

    def start(name: str) -> Run:
        return verb.train("two", "digits", config=part, out=tmp_path / name, **options)

    start("whole")
    with Faults() as faults:
        start("counted")
    whole = Run(tmp_path / "whole").checkpoint().hashes["model.safetensors"]
    before = 0
    for at in range(0, len(faults.seen), 3):
        out = tmp_path / f"run {at}"
        assert killed_at(at, lambda out=out: start(out.name))
        before += not (out / "config.yaml").exists()
        again = (
            verb.train(resume=out, quiet=True)
            if (out / "config.yaml").exists()
            else start(out.name)
        )
        assert again.checkpoint().hashes["model.safetensors"] == whole
    assert before >= 5


def test_killed_many_times_over(tmp_path):
    """Each life does a few more writes than the last checkpoint needed, then dies."""
    whole = contents(train(tmp_path / "whole"))
    draw, out, lives = random.Random(1), tmp_path / "run", 0
    while killed_at(draw.randint(30, 130), lambda: go_on(out)):
        lives += 1
        assert lives < 100
    assert lives >= 3
    assert contents(Run(out)) == whole


def test_budget_corrected_on_the_way_is_kept_by_a_resume(tmp_path, monkeypatch):
    """The run dies between a correction by the clock and the next checkpoint that was planned."""
    real = engines.correct

    def correct(schedule: Any, step: int, seconds: float) -> bool:
        due = step == 3 and not schedule.corrected
        if due:
            schedule.stage_steps, schedule.corrected = [10], [3]
        return due

    assert callable(real)
    monkeypatch.setattr(engines, "correct", correct)

    class Dying(engines.Engine):
        def run_step(self) -> Any:
            if self.step == 4 and (tmp_path / "dies").exists():
                os._exit(0)
            return super().run_step()

    monkeypatch.setattr(verb, "Engine", Dying)
    options = {**OPTIONS, "steps": None, "epochs": 0.05, "checkpoints": 2}

    def start(name: str) -> Run:
        options_ = {**options, "threads": 1, "quiet": True, "opened": digits()}
        return verb.train("everything", "digits", out=tmp_path / name, **options_)

    whole = start("whole")
    (tmp_path / "dies").touch()
    in_child(lambda: start("run"))
    (tmp_path / "dies").unlink()
    run = Run(tmp_path / "run")
    assert run.read_json("schedule.json")["corrected"] == [3]
    assert run.checkpoint().step == 3
    assert contents(verb.train(resume=run.path, quiet=True)) == contents(whole)


# -- full disk, through the command line ------------------------------------------------------


def command_line(out: Path, capsys: Any) -> tuple[int, str]:
    """Train or resume as the command line does; return its exit code and standard error."""
    capsys.readouterr()
    start = ["--resume", str(out), "--quiet"] if (out / "config.yaml").exists() else COMMAND
    code = main(["train", *start, *(() if "--resume" in start else ("--out", str(out)))])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("every", EVERY)
def test_full_disk_is_one_line_and_the_run_goes_on_after(every, tmp_path, capsys):
    with Faults(only=NEEDS_SPACE) as faults:
        assert command_line(tmp_path / "whole", capsys)[0] == 0
    whole = contents(Run(tmp_path / "whole"))
    assert len(faults.seen) > 100
    for at in moments(12, len(faults.seen), every):
        out = tmp_path / str(at)
        with Faults(at, full_disk, lasting=True, only=NEEDS_SPACE):
            code, said = command_line(out, capsys)
        assert code == 2, said
        assert said.startswith("poiesis: can't write ") and said.count("\n") == 1
        assert "No space left on device; free some space" in said
        code, said = command_line(out, capsys)
        assert code == 0, said
        assert contents(Run(out)) == whole, (at, faults.seen[at])


def test_limit_on_file_sizes_is_one_line(tmp_path, capfd):
    """A limit that the operating system itself enforces."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        assert main(["train", *COMMAND, "--out", str(tmp_path / "run")]) == 2

    in_child(limited)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "File too large; raise the limit on file sizes (ulimit -f) and use --resume" in said
    run = verb.train(resume=tmp_path / "run", quiet=True)
    assert run.checkpoint().step == OPTIONS["steps"]


SMALL_DISK = """
import os, sys
from poiesis.cli.main import main
space = os.statvfs(".")
ballast = space.f_bavail * space.f_bsize - int(sys.argv[1])
with open("ballast", "wb") as file:
    file.write(bytes(ballast))
first = main(["train", *sys.argv[2:], "--out", "run"])
left = os.path.exists("run/checkpoints/latest")
os.unlink("ballast")
print(first, left, main(["train", "--resume", "run", "--quiet"]))
"""


def test_small_file_system_that_fills_up(tmp_path):
    """A real disk, full after two checkpoints: training stops, and goes on when space is freed."""
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        fits = f"mount -t tmpfs -o size=4m none {disk}"
        allowed = subprocess.run([*mount, fits], capture_output=True, timeout=60).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("this machine does not let users mount a file system")
    steps = f'{fits}; cd {disk}; exec "$@"'
    python = [sys.executable, "-c", SMALL_DISK, str(250_000), *COMMAND]
    done = subprocess.run(
        [*mount, steps, "sh", *python], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    first = [line for line in done.stderr.splitlines() if line.startswith("poiesis: ")]
    assert len(first) == 1
    assert first[0].endswith("No space left on device; free some space and use --resume")
    assert done.stdout.splitlines()[-1] == "2 True 0"
