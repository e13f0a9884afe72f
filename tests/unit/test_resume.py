"""A killed training goes on bit for bit, whatever the moment and whatever the crash left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.faults import killed_at

from poiesis.cli.main import main
from poiesis.errors import PoiesisWarning, RunError
from poiesis.models.trained import load
from poiesis.runs import Checkpoint, Run
from poiesis.training import verb
from poiesis.training.engine import Engine

STEPS = 24
OPTIONS = {
    "steps": STEPS,
    "checkpoints": STEPS,
    "validations": 6,
    "grids": 0,
    "snapshots": 5,
    "threads": 1,
    "log_every": 0.0,
}
TINY = {
    "vae": {"widths": (32,), "latent_dim": 4, "batch_size": 16},
    "dcgan": {"widths": (8,), "latent_dim": 8, "batch_size": 16},
    "ddpm": {"channels": 8, "multipliers": (1,), "attention": (8,), "batch_size": 8},
    "transformer": {"layers": 1, "width": 16, "heads": 2, "batch_size": 4},
}


def command(name: str, out: Path) -> list[str]:
    """Return the words of the command line that trains like `train` does."""
    words = ["train", name, "--data", "digits", "--out", str(out), "--quiet"]
    for room, values in (("model", TINY[name]), ("train", OPTIONS)):
        for key, value in values.items():
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{room}.{key.replace('_', '-')}", text]
    return words


def train(name: str, out: Path, **changes: Any) -> Run:
    return verb.train(
        name,
        "digits",
        config={"model": TINY[name]},
        out=out,
        quiet=True,
        **{**OPTIONS, **changes},
    )


def last_step(out: Path) -> int:
    pointer = out / "checkpoints" / "latest"
    return int(pointer.read_text().rsplit("-", 1)[1]) if pointer.exists() else 0


def losses(run: Run) -> list[dict[str, float]]:
    timing = ("train/rate", "train/seconds")
    return [{k: v for k, v in line.items() if k not in timing} for line in run.metrics()]


def assert_same_end(one: Run, two: Run) -> None:
    """Weights, averages, optimizer states, best checkpoint, snapshots and all losses are equal."""
    for which in ("latest", "best"):
        assert one.has_checkpoint(which) == two.has_checkpoint(which)
        if one.has_checkpoint(which):
            a, b = one.checkpoint(which), two.checkpoint(which)
            assert a.step == b.step
            tensors = [file for file in a.hashes if file.endswith(".safetensors")]
            assert len(tensors) == (5 if which == "latest" else 2)
            assert [a.hashes[f] for f in tensors] == [b.hashes[f] for f in tensors]
            states = [{**c.json("state.json"), "seconds": 0} for c in (a, b)]
            assert states[0] == states[1]
    found = [{s: Checkpoint(p).hashes for s, p in run.snapshots().items()} for run in (one, two)]
    assert found[0] == found[1] and len(found[0]) == OPTIONS["snapshots"]
    assert losses(one) == losses(two)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))]
)
@pytest.mark.parametrize("name", list(TINY))
def test_killed_at_random_moments(name, seed, tmp_path):
    """Kill the command at a moment, then its resumes at writes, and compare the ends."""
    moment = random.Random(f"{name} {seed}")
    kill_after, delay = moment.randint(0, STEPS // 3), moment.uniform(0, 0.05)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "poiesis", *command(name, killed)], stderr=subprocess.PIPE
    )
    whole = train(name, tmp_path / "whole")
    while not (killed / "metrics.jsonl").exists() or last_step(killed) < kill_after:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert last_step(killed) < STEPS
    resume = ["train", "--resume", str(killed), "--quiet"]
    for _ in range(2):
        assert killed_at(moment.randint(10, 120), lambda: main(resume))
    assert main(resume) == 0
    resumed = Run.open(killed)
    assert len(losses(resumed)) == STEPS + (0 if name == "dcgan" else 6)
    assert_same_end(resumed, whole)
    assert not list((resumed.path / "checkpoints").glob(".*"))
    # Every start is told of, if it came as far as that.
    env = resumed.read_json("env.json")
    assert 1 <= len(env["resumed"]) <= 3
    assert env["resumed"][-1]["threads"] == env["threads"] == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return train("vae", tmp_path_factory.mktemp("whole") / "run", steps=12, checkpoints=6)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do something in the middle of a step."""

    class Stopping(Engine):
        def run_step(self) -> Any:
            logs = super().run_step()
            if self.step == step:
                action(self)
            return logs

    monkeypatch.setattr(verb, "Engine", Stopping)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped byte": lambda c: flip(c / "model.safetensors"),
    "truncated": lambda c: os.truncate(c / "optimizer.safetensors", 100),
    "missing file": lambda c: (c / "state.json").unlink(),
    "no manifest": lambda c: (c / "manifest.json").unlink(),
    "bad manifest": lambda c: (c / "manifest.json").write_text('{"sha'),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage, tmp_path, monkeypatch, whole
):
    stop_at(monkeypatch, 7, lambda engine: setattr(engine, "stop", True))
    run = train("vae", tmp_path / "run", steps=12, checkpoints=6)
    monkeypatch.undo()
    newest = run.checkpoint()
    assert newest.step == 8
    DAMAGES[damage](newest.path)
    with pytest.warns(PoiesisWarning, match="going back to step-00000006"):
        resumed = verb.train(resume=run.path, quiet=True)
    assert_same_end(resumed, whole)


def test_all_checkpoints_damaged_is_one_line(tmp_path):
    run = train("vae", tmp_path / "run", steps=4, checkpoints=2)
    for checkpoint in (run.path / "checkpoints").glob("[sb]*-*"):
        flip(checkpoint / "model.safetensors")
    with pytest.raises(RunError, match=r"no whole checkpoint yet .*is damaged") as raised:
        verb.train(resume=run.path, quiet=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_saves_and_says_how_to_go_on(
    number, tmp_path, monkeypatch, capsys, whole
):
    stop_at(monkeypatch, 4, lambda engine: os.kill(os.getpid(), number))
    run = verb.train(
        "vae",
        "digits",
        config={"model": TINY["vae"]},
        out=tmp_path / "run",
        **{**OPTIONS, "steps": 12, "checkpoints": 1},
    )
    assert run.checkpoint().step == 5
    said = capsys.readouterr().err
    assert "finishing the step and saving" in said
    assert f"stopped after step 5 of 12; continue with: poiesis train --resume {run.path}" in said
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    monkeypatch.undo()
    verb.train(resume=run.path, quiet=True)
    assert_same_end(run, whole)


def test_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def twice(engine: Engine) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    stop_at(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        train("vae", tmp_path / "run", steps=12, checkpoints=6)
    assert Run.open(tmp_path / "run").checkpoint().step == 4


def test_resume_of_a_finished_run_changes_nothing_and_more_steps_extend_it(tmp_path, whole):
    run = train("vae", tmp_path / "run", steps=12, checkpoints=6)
    before = run.checkpoint().hashes
    verb.train(resume=run.path, quiet=True)
    assert run.checkpoint().hashes == before
    verb.train(resume=run.path, quiet=True, steps=15)
    assert run.checkpoint().step == 15
    assert run.config()["train"]["steps"] == 15
    steps = [line["step"] for line in run.metrics() if "train/vae" in line]
    assert steps == list(range(1, 16))


def test_resume_keeps_the_resolved_length_unless_told(tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, lambda engine: setattr(engine, "stop", True))
    run = train("vae", tmp_path / "run", steps=None, epochs=0.1, checkpoints=1, validations=0)
    monkeypatch.undo()
    total = sum(run.read_json("schedule.json")["stage_steps"])
    run.write_json("schedule.json", {**run.read_json("schedule.json"), "stage_steps": [total - 1]})
    verb.train(resume=run.path, quiet=True, threads=1)
    assert run.checkpoint().step == total - 1
    verb.train(resume=run.path, quiet=True, epochs=0.2)
    assert run.checkpoint().step == pytest.approx(2 * total, abs=2)


def test_resume_on_another_number_of_threads_is_refused(tmp_path, capsys):
    run = train("vae", tmp_path / "run", steps=2, checkpoints=1)
    env = run.read_json("env.json")
    run.write_json("env.json", {**env, "threads": 7})
    with pytest.raises(RunError, match=r"--train\.threads 7 or allow it with --resume-anyway"):
        verb.train(resume=run.path, quiet=True)
    assert capsys.readouterr().err == ""
    assert main(["train", "--resume", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert "was trained with 7 threads, not 1" in said and said.count("\n") == 1
    with pytest.warns(PoiesisWarning, match="not bit for bit the same"):
        verb.train(resume=run.path, quiet=True, resume_anyway=True, steps=3)
    assert run.checkpoint().step == 3
    assert "resume: threads changes from 7 to 1\n" in capsys.readouterr().err
    # Both are told of, and the last is what the next resume must match.
    env = run.read_json("env.json")
    assert env["threads"] == 7
    assert [(e["step"], e["threads"]) for e in env["resumed"]] == [(2, 1)]
    verb.train(resume=run.path, quiet=True, steps=4)
    env = run.read_json("env.json")
    assert [(e["step"], e["threads"]) for e in env["resumed"]] == [(2, 1), (3, 1)]
    assert capsys.readouterr().err == "resume: train.steps changes from 3 to 4\n"


def test_every_difference_is_a_line(tmp_path, capsys):
    run = train("vae", tmp_path / "run", steps=2, checkpoints=1)
    env = run.read_json("env.json")
    now = dict(env["versions"])
    before = {"versions": {**now, "torch": "2.0"}, "processor": "Z80", "gpu": "Voodoo"}
    run.write_json("env.json", {**env, **before, "cores": 9999})
    with pytest.warns(PoiesisWarning, match=r"differs .*processor.*not bit for bit the same"):
        verb.train(resume=run.path, quiet=True, steps=3, clip=1.0, accumulate=2, keep=1)
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == sorted(
        [
            "resume: train.steps changes from 2 to 3",
            "resume: train.clip changes from None to 1.0",
            "resume: train.accumulate changes from 1 to 2",
            "resume: train.keep changes from 2 to 1",
            f"resume: versions.torch changes from 2.0 to {now['torch']}",
            f"resume: processor changes from Z80 to {env['processor']}",
            f"resume: gpu changes from Voodoo to {env['gpu']}",
            f"resume: cores changes from 9999 to {env['cores']}",
        ]
    )


def test_options_that_came_with_a_later_version_are_no_difference(tmp_path, capsys):
    run = train("vae", tmp_path / "run", steps=2, checkpoints=1)
    file = run.path / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "snapshots:" not in line]
    assert len(kept) == len(lines) - 1
    file.write_text("".join(kept))
    verb.train(resume=run.path, quiet=True, steps=3)
    assert capsys.readouterr().err == "resume: train.steps changes from 2 to 3\n"


def test_other_data_are_refused_and_named(tmp_path, capsys):
    run = train("vae", tmp_path / "run", steps=2, checkpoints=1)
    data = run.read_json("data.json")
    run.write_json("data.json", {**data, "notes": {**data["notes"], "from": "elsewhere"}})
    with pytest.raises(RunError, match="the data 'digits' differ"):
        verb.train(resume=run.path, quiet=True)
    verb.train(resume=run.path, quiet=True, resume_anyway=True)
    assert capsys.readouterr().err == "resume: data: from changes from elsewhere to None\n"


def test_best_of_a_way_not_taken_is_dropped(tmp_path, monkeypatch):
    """Killed between a best checkpoint and the next regular one, then resumed with a change."""

    class Dies(Exception):
        pass

    def die(engine: Engine) -> None:
        raise Dies

    stop_at(monkeypatch, 9, die)
    with pytest.raises(Dies):
        train("vae", tmp_path / "run", steps=12, checkpoints=2)
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert (run.checkpoint().step, run.checkpoint("best").step) == (6, 8)
    same = Run(shutil.copytree(run.path, tmp_path / "same"))
    monkeypatch.setattr(verb, "_fit", lambda engine, run: None)
    verb.train(resume=same.path, quiet=True)
    assert same.checkpoint("best").step == 8
    verb.train(resume=run.path, quiet=True, clip=0.1)
    assert not run.has_checkpoint("best")


def test_loading_survives_a_damaged_newest_checkpoint(tmp_path):
    run = train("vae", tmp_path / "run", steps=4, checkpoints=4, validations=0)
    flip(run.checkpoint().path / "model.safetensors")
    with pytest.warns(PoiesisWarning, match="going back to step-00000003"):
        assert load(run.path, device="cpu").step == 3
