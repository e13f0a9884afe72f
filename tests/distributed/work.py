"""What one process and two do alike: run by the tests, and by torchrun as `work.py FOLDER`.

`work.py FOLDER RANK`: a training in which the process of that rank dies while it saves.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from poiesis import processes, registry
from poiesis.comparison import compare
from poiesis.data import open_data
from poiesis.errors import PoiesisWarning
from poiesis.evaluation.protocol import EvaluationConfig, evaluate
from poiesis.models.samples import sample
from poiesis.models.trained import build
from poiesis.runs import Run
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine
from poiesis.training.verb import train
from tests.faults import Faults

MODELS = ("vae", "dcgan", "transformer")
STEPS = 20
LEFT_AT = {"vae": 10, "dcgan": 19, "transformer": 15}
"""After how many steps a run is left to be resumed."""
QUICK: dict[str, Any] = {"grids": 0, "validations": 1, "log_every": 0, "precision": "fp32"}
SHARD = {"vae": ("encoder", "decoder"), "dcgan": ("generator",), "transformer": ("head",)}


def _in_double(model: torch.nn.Module) -> None:
    """Compute a GAN's networks in float64.

    Adam turns the last digit of a gradient near zero into a full step, and a GAN doubles such a
    difference every step: in float32 only chance decides whether 20 steps agree.
    """
    model.double()
    for network in model.children():
        network.register_forward_pre_hook(
            lambda module, inputs: tuple(
                x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs
            )
        )


def losses(name: str, shard: tuple[str, ...] = (), accumulate: int = 1) -> list[dict[str, float]]:
    """Train a model on the digits for `STEPS` steps; return what each step logged."""
    data = open_data("digits")
    cls = registry.model_class(name)
    torch.manual_seed(0)
    model = build(cls, cls.preset("default", data.spec), data.spec, data.condition)
    model.to(memory_format=torch.channels_last)  # as where bf16 is in hardware
    if name == "dcgan":
        _in_double(model)
    config = TrainConfig(steps=STEPS, shard=shard, accumulate=accumulate, clip=5.0, **QUICK)
    engine = Engine(model, data, config, quiet=True)
    engine.prepare()
    seen = []
    for _ in range(STEPS):
        seen.append({k: float(v) for k, v in engine.run_step().items()})
        engine.step += 1
    return seen


def trained(name: str, out: Path, **options: Any) -> None:
    """Train with a checkpoint after every step, and two looks at the run's health."""
    saves = {"checkpoints": STEPS, "keep": STEPS, "monitors": STEPS // 2, "snapshots": 4}
    changes = {"data": {"source": "digits"}, "train": {"steps": STEPS, **QUICK, **saves, **options}}
    train(name, config=changes, out=out, quiet=True)


def left(run: Path, out: Path, step: int) -> Path:
    """Copy a run as it was after a step: what a kill would have left."""

    def copy() -> None:
        shutil.copytree(run, out)
        for path in (out / "checkpoints").glob("step-*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        (out / "checkpoints" / "latest").write_text(f"step-{step:08d}")

    processes.by_main(copy)
    return out


def resumed(run: Path, out: Path, name: str) -> None:
    """Go on from the middle of a run to its end, whatever differs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoiesisWarning)
        train(resume=left(run, out, LEFT_AT[name]), resume_anyway=True, quiet=True)


def state(run: Path, which: str = "latest") -> dict[str, torch.Tensor]:
    """Return the weights, averages of all kinds and optimizer states of a checkpoint."""
    checkpoint = Run(run).checkpoint(which)
    return {
        f"{file}/{key}": tensor
        for file in ("model", "ema", "averages", "optimizer")
        for key, tensor in checkpoint.tensors(f"{file}.safetensors").items()
    }


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any weight of two states."""
    assert a.keys() == b.keys()
    return max(
        float((a[key].double() - b[key].double()).abs().max())
        for key in a
        if key.startswith("model/") and a[key].is_floating_point()
    )


SAMPLES: tuple[dict[str, Any], ...] = (
    {"n": 70, "batch_size": 16},
    {"n": 90, "batch_size": 16, "shard_size": 20},
)
COMPARE: dict[str, Any] = {"steps": 4, "samples": 80, "quiet": True}


def numbers(run: Path) -> dict[str, float]:
    """Judge a run; return its numbers but for its speed."""
    config = EvaluationConfig(samples=90, likelihood_rows=120, batch_size=32)
    found = evaluate(run, config).numbers
    return {number.name: number.value for number in found if number.name != "sampling_speed"}


def main(folder: Path) -> None:
    """Do all that two processes are asked for; one call, since starting them takes seconds."""
    processes.join()
    torch.set_num_threads(1)
    seen: dict[str, Any] = {}
    for name in MODELS:
        seen[name] = losses(name)
        trained(name, folder / f"two-{name}")
        resumed(folder / f"two-{name}", folder / f"two-two-{name}", name)
        resumed(folder / f"one-{name}", folder / f"one-two-{name}", name)
    seen["accumulated"] = losses("vae", accumulate=4)
    for name, networks in SHARD.items():
        seen[f"sharded {name}"] = losses(name, networks)
    trained("vae", folder / "sharded", shard=SHARD["vae"])
    resumed(folder / "sharded", folder / "sharded-sharded", "vae")
    for options in SAMPLES:
        sample(folder / "one-vae", out=folder / f"two-samples-{len(options)}", **options)
    seen["numbers"] = numbers(folder / "one-vae")
    seen["texts"] = numbers(folder / "one-names")
    compared = compare(["vae", "transformer"], "digits", out=folder / "two-compared", **COMPARE)
    seen["compared"] = [row.model for row in compared.rows if not row.failure]
    if processes.main():
        (folder / "seen.json").write_text(json.dumps(seen))
    processes.barrier()
    processes.leave()


def killed(folder: Path, rank: int) -> None:
    """Train with a sharded checkpoint after every step; one process dies while it writes a shard.

    In its third checkpoint, in the middle of the first write of its own file.
    """
    processes.join()
    torch.set_num_threads(1)
    write, calls = processes.save_shards, itertools.count(1)

    def dying(to: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        fatal = next(calls) == 3 and processes.rank() == rank
        with Faults(at=0 if fatal else None, only=("write",)):
            write(to, tensors)

    processes.save_shards = dying
    trained("vae", folder, shard=SHARD["vae"], validations=0)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        killed(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
