"""Two processes (gloo) train the model that one trains, resume it, and read each other's runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from poiesis.errors import PoiesisWarning
from poiesis.models.samples import sample
from poiesis.models.trained import load
from poiesis.runs import Run
from poiesis.training.verb import train
from tests.distributed import work

ROOT = Path(__file__).parents[2]


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a command in several processes of one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(processes), *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )


TINY = {"layers": 1, "width": 16, "heads": 2, "context": 16, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two: one-NAME, two-NAME; one-two-NAME began with one."""
    folder = tmp_path_factory.mktemp("distributed")
    for name in work.MODELS:
        work.trained(name, folder / f"one-{name}")
    names = folder / "names.txt"
    names.write_text("ada anna bea bella cora dana\n" * 80)
    changes = {"data": {"source": str(names)}, "train": {"steps": 3, **work.QUICK}}
    train("transformer", config={**changes, "model": TINY}, out=folder / "one-names", quiet=True)
    done = torchrun(str(ROOT / "tests/distributed/work.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


def same(one: list[dict[str, float]], two: list[dict[str, float]], tolerance: float) -> None:
    assert len(one) == len(two) == work.STEPS
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, key)


def test_processes_end_in_peace(tmp_path):
    # A group that something still refers to (a device mesh does) outlives its being left.
    script = tmp_path / "work.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from poiesis import processes\n"
        "processes.join()\n"
        "group = dist.group.WORLD\n"
        "for _ in range(3):\n"
        "    processes.largest(1.0)\n"
        "processes.leave()\n"
    )
    for _ in range(5):  # by chance: every other time it did not
        done = torchrun(str(script))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", work.MODELS)
def test_losses_agree_with_one_process(seen, name):
    one = work.losses(name)
    same(one, seen[name], 1e-4)
    assert one[0] != one[-1]


@pytest.mark.parametrize("name", work.SHARD)
def test_sharded_networks_learn_the_same(seen, name):
    same(work.losses(name), seen[f"sharded {name}"], 1e-4)


def test_accumulation_changes_nothing(seen):
    same(work.losses("vae"), seen["accumulated"], 1e-4)


@pytest.mark.parametrize("way", ["two-vae", "two-dcgan", "sharded"])
def test_looks_agree_with_one_process(folder, way):
    """Drawn, shown to the discriminator and compared in parts or in one process."""
    name = "dcgan" if way == "two-dcgan" else "vae"
    one, two = (
        [line for line in Run(folder / run).metrics() if "health/coverage" in line]
        for run in (f"one-{name}", way)
    )
    assert [line["step"] for line in one] == [line["step"] for line in two] == [10, 20]
    for number in ("precision", "coverage", "lost", "vendi", "variety"):
        a, b = one[0][f"health/{number}"], two[0][f"health/{number}"]
        assert b == pytest.approx(a, rel=0.02, abs=0.02), number
    if name == "dcgan":
        assert one[0]["health/fooled"] == pytest.approx(two[0]["health/fooled"], abs=0.02)


@pytest.mark.parametrize("name", work.MODELS)
def test_two_processes_resume_bit_for_bit(folder, name):
    straight, resumed = (work.state(folder / f"{way}-{name}") for way in ("two", "two-two"))
    assert straight.keys() == resumed.keys()
    for key, tensor in straight.items():
        assert torch.equal(tensor, resumed[key]), key


@pytest.mark.parametrize("name", work.MODELS)
def test_a_run_goes_on_with_another_number_of_processes(folder, tmp_path, name):
    """Sums in another order; the fewer steps on top, the faster a model spreads a difference."""
    work.resumed(folder / f"two-{name}", tmp_path / "run", name)
    ends = {way: work.state(folder / f"{way}-{name}") for way in ("one", "two", "one-two")}
    assert work.distance(work.state(tmp_path / "run"), ends["two"]) < 1e-5
    assert work.distance(ends["one-two"], ends["one"]) < 1e-5


def test_averages_of_any_length_of_a_sharded_run_are_those_of_one_process(folder):
    one, sharded = (
        load(folder / way, checkpoint="ema:0.08@15", device="cpu").model.state_dict()
        for way in ("one-vae", "sharded")
    )
    for name, tensor in one.items():
        assert torch.allclose(tensor, sharded[name], atol=1e-4), name


def test_a_sharded_run_resumes_bit_for_bit_and_is_read_by_one_process(folder, tmp_path):
    straight, resumed = (work.state(folder / f"{way}") for way in ("sharded", "sharded-sharded"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in straight.items())
    assert straight.keys() == work.state(folder / "two-vae").keys()
    assert work.distance(straight, work.state(folder / "two-vae")) < 1e-4
    work.resumed(folder / "sharded", tmp_path / "run", "vae")
    assert work.distance(work.state(tmp_path / "run"), straight) < 1e-5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_in_a_sharded_save_loses_one_checkpoint(tmp_path, folder, rank):
    run = tmp_path / "run"
    done = torchrun(str(ROOT / "tests/distributed/work.py"), str(run), str(rank))
    assert done.returncode != 0 and "SIGKILL" in done.stderr
    assert (run / "checkpoints" / ".step-00000003.tmp").is_dir()
    assert Run(run).checkpoint().step == 2
    with pytest.warns(PoiesisWarning, match="processes"):
        train(resume=run, resume_anyway=True, quiet=True)
    assert not list((run / "checkpoints").glob(".*"))
    assert work.distance(work.state(run), work.state(folder / "sharded")) < 1e-4


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("options", work.SAMPLES, ids=["files", "shards"])
def test_two_processes_sample_the_same_files(folder, tmp_path, options):
    sample(folder / "one-vae", out=tmp_path, **options)
    one, two = files(tmp_path), files(folder / f"two-samples-{len(options)}")
    assert one.keys() == two.keys()
    one.pop("grid.png", None), two.pop("grid.png", None)  # of the main process's share
    assert one == two


@pytest.mark.parametrize("run", ["vae", "names"])
def test_two_processes_judge_alike(folder, seen, run):
    one = work.numbers(folder / f"one-{run}")
    two = seen["numbers" if run == "vae" else "texts"]
    assert one.keys() == two.keys() and len(one) > 2
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_two_processes_compare_models(folder, seen):
    assert sorted(seen["compared"]) == ["transformer", "vae"]
    assert (folder / "two-compared" / "report.html").is_file()


def test_mistakes_are_told_once():
    arguments = ["-m", "poiesis", "train", "vae", "--data", "digits"]
    done = torchrun(*arguments, "--train.shard", "encodr", "--train.steps", "1")
    assert done.stderr.count("poiesis: train.shard names 'encodr'") == 1
    assert 'Traceback (most recent call last):\n  File "/' not in done.stderr.split("torchrun")[0]
