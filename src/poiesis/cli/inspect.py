"""`poiesis inspect`: the recipe in a generated file, or what a run or checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from poiesis import config as configs
from poiesis.cli.options import parse
from poiesis.cli.output import human_bytes, print_json
from poiesis.errors import DataError, RunError
from poiesis.runs import Checkpoint, Run

__all__ = ["InspectArgs", "run"]

_EXAMPLES = (
    "poiesis inspect samples/00000.png",
    "poiesis inspect runs/first",
    "poiesis inspect runs/first/checkpoints/best-00001200 --json",
)


@dataclass(frozen=True, kw_only=True)
class InspectArgs:
    """Options of the verb."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE-OR-RUN")]
    """A generated file, a run folder or a checkpoint folder."""
    json: bool = False
    """Print one JSON document."""


def run(args: list[str]) -> int:
    """Print what the path holds; 1 if a checkpoint of the run is damaged."""
    parsed = parse(
        InspectArgs,
        args,
        prog="poiesis inspect",
        description="Show how a generated file was made, or sum up a run and verify the hashes "
        "of its checkpoints.",
        examples=_EXAMPLES,
    )
    path = Path(parsed.path)
    if not path.exists():
        raise DataError(f"there is no file or folder {parsed.path!r}; check the path")
    if not path.is_dir():
        from poiesis.data.provenance import read_recipe

        value = read_recipe(path)
    elif (path / "manifest.json").exists():
        value = _checkpoint(path)
    else:
        value = _run(Run.open(path))
    if parsed.json:
        print_json(value)
    else:
        for key, leaf in configs.flatten(_brief(value)):
            print(f"{key}: {_short(leaf)}")
    return 1 if value.get("damaged") else 0


def _brief(value: dict[str, Any]) -> dict[str, Any]:
    """Return a run's summary without the hashes of its checkpoints."""
    if "checkpoints" not in value:
        return value
    found = {name: f"step {c['step']}, hashes verified" for name, c in value["checkpoints"].items()}
    alarms = {str(number): text for number, text in enumerate(value["alarms"], 1)}
    return {**value, "checkpoints": found, "alarms": alarms or "none"}


def _short(value: Any) -> str:
    text = " ".join(str(value).split()) if not isinstance(value, str) else value
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text)} characters)"


def _checkpoint(path: Path) -> dict[str, Any]:
    """Return step, hashes and sizes of a checkpoint; raises RunError if it is damaged."""
    from safetensors import safe_open

    found = Checkpoint(path)
    files = {}
    for name, digest in found.hashes.items():
        files[name] = {"sha256": digest, "size": human_bytes((path / name).stat().st_size)}
        if name.endswith(".safetensors"):
            with safe_open(path / name, framework="numpy") as tensors:
                shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
            files[name] |= {"tensors": len(shapes), "values": sum(map(_product, shapes))}
    return {"step": found.step, "files": files}


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _run(folder: Run) -> dict[str, Any]:
    config = folder.config()
    data = folder.read_json("data.json", {})
    schedule = folder.read_json("schedule.json", {})
    environment = folder.read_json("env.json", {})
    lines = folder.metrics()
    checkpoints, damaged = {}, []
    for path in sorted((folder.path / "checkpoints").glob("[!.]*-*")):
        try:
            found = Checkpoint(path)
        except RunError as error:
            damaged.append(str(error))
            continue
        checkpoints[path.name] = {"step": found.step, "sha256": found.hashes}
    return {
        "run": str(folder.path),
        "model": config.get("name"),
        "preset": config.get("preset"),
        "seed": config.get("seed"),
        "poiesis": config.get("poiesis"),
        "data": data.get("variant"),
        "skipped": len(data.get("skipped", [])),
        "steps": {
            "done": lines[-1].get("step") if lines else 0,
            "planned": sum(schedule.get("stage_steps", [])),
        },
        "last": lines[-1] if lines else {},
        "checkpoints": checkpoints,
        "damaged": damaged,
        "alarms": [alarm.get("sentence") for alarm in folder.alarms()],
        "evaluated": (folder.path / "evaluation.json").exists(),
        "report": (folder.path / "report.html").exists(),
        "size": human_bytes(sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file())),
        "config": {key: config.get(key) for key in ("data", "model", "train")},
        "environment": environment,
    }
