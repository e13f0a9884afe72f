"""What a resume needs of an engine: its state as checkpoint files, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poiesis.models.averages import FILE
from poiesis.runs import Checkpoint
from poiesis.training import distribution
from poiesis.training import optimizers as optim

if TYPE_CHECKING:
    from poiesis.training.engine import Engine

__all__ = ["collect", "read", "restore"]


def collect(engine: Engine) -> dict[str, Any]:
    """Return all that a resume needs, as checkpoint files by name."""
    tensors, values = optim.states(engine.optimizers)
    extra_tensors, extra_values = {}, {}
    extra = distribution.gather_extra(engine.model.extra_state(), engine.model.per_process)
    for key, value in extra.items():
        (extra_tensors if torch.is_tensor(value) else extra_values)[key] = value
    averages = engine.snapshots.shadow
    return {
        **({FILE: averages} if averages else {}),
        "model.safetensors": dict(engine.model.state_dict()),
        "ema.safetensors": dict(engine.average.shadow),
        "optimizer.safetensors": tensors,
        "extra.safetensors": extra_tensors,
        "state.json": {
            "step": engine.step,
            "stage": engine.stage_index,
            "seconds": engine.seconds,
            "best": None if math.isinf(engine.best) else engine.best,
            "watch": engine.watch,
            "prepared": engine.prepared,
            "attempt": engine.attempt,
            "bad_steps": engine.bad_steps.total,
            "bad_in_a_row": engine.bad_steps.in_a_row,
            "optimizers": values,
            "extra": extra_values,
        },
    }


def restore(engine: Engine, files: dict[str, Any]) -> None:
    """Give an engine back what `collect` returned."""
    state = files["state.json"]
    engine.enter(state["stage"])
    own = engine.model.state_dict()
    tensors = files["model.safetensors"]
    placed = {k: distribution.place(v, own.get(k, v)) for k, v in tensors.items()}
    engine.model.load_state_dict(placed)
    if engine.average.shadow:
        engine.average.load(files["ema.safetensors"])
    engine.snapshots.load(files.get(FILE, {}))
    optim.load_states(engine.optimizers, files["optimizer.safetensors"], state["optimizers"])
    extra = {**files["extra.safetensors"], **state["extra"]}
    extra = distribution.own_extra(extra, engine.model.per_process)
    engine.model.load_extra_state(extra)
    engine.step, engine._settled = state["step"], -1
    engine.seconds = state["seconds"]
    engine.best = math.inf if state["best"] is None else state["best"]
    engine.watch = state["watch"]
    engine.prepared = state["prepared"]
    engine.attempt = state.get("attempt", 0)
    engine.bad_steps.total = state["bad_steps"]
    engine.bad_steps.in_a_row = state.get("bad_in_a_row", 0)


def read(engine: Engine, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's files, on the engine's device; what is split, split as its own is."""
    files: dict[str, Any] = {"state.json": checkpoint.json("state.json")}
    engine.enter(files["state.json"]["stage"])
    stepped = optim.owners(engine.optimizers)
    # Where to find, by file, the tensor that a saved one is split like.
    like: dict[str, Callable[[str], Tensor | None]] = {
        "model": engine.model.state_dict().get,
        "ema": engine.average.shadow.get,
        FILE.removesuffix(".safetensors"): engine.snapshots.shadow.get,
        "optimizer": lambda key: stepped.get(key.rpartition("/")[0]),
        "extra": lambda key: None,
    }
    for name, find in like.items():
        tensors = checkpoint.tensors(f"{name}.safetensors", find)
        files[f"{name}.safetensors"] = {k: v.to(engine.device) for k, v in tensors.items()}
    return files
