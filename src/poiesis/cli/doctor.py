"""`poiesis doctor`: what this machine and installation can do, and what stands in the way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poiesis import __version__
from poiesis.cli.options import parse
from poiesis.cli.output import human_bytes, print_json

__all__ = ["DoctorArgs", "run"]

_EXAMPLES = ("poiesis doctor", "poiesis doctor --json")
_OPTIONAL = {
    "datasets": ("hub", "--data hf:OWNER/NAME"),
    "tensorboard": ("trackers", "--train.track tensorboard"),
    "wandb": ("wandb", "--train.track wandb"),
    "mlflow": ("mlflow", "--train.track mlflow"),
    "umap": ("umap", "latent RUN map --method umap"),
}
"""Package → the extra that brings it, what it is for."""
_OLDEST_TORCH = (2, 10)
_LITTLE_DISK = 2e9
_LITTLE_MEMORY = 2e9
_PROBE = 512
"""Side of the matrices that the speed probe multiplies."""


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Options of the verb."""

    json: bool = False
    """Print one JSON document."""


def run(args: list[str]) -> int:
    """Print the findings; 1 if something is in the way."""
    parsed = parse(
        DoctorArgs,
        args,
        prog="poiesis doctor",
        description="Check versions, processor, GPU, data folders, optional packages, disk and "
        "write permission, and measure the speed of arithmetic. Exit code 1 if something is in "
        "the way.",
        examples=_EXAMPLES,
    )
    found = examine()
    if parsed.json:
        print_json(found)
    else:
        _print(found)
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Return the findings; "problems" stand in the way, "notes" do not."""
    problems: list[str] = []
    notes: list[str] = []
    found: dict[str, Any] = {"poiesis": __version__}
    try:
        found |= _torch(problems, notes)
    except (ImportError, OSError) as error:
        first = (str(error).splitlines() or ["?"])[0]
        problems.append(f"torch can't be imported ({first}): pip install --force-reinstall torch")
    found["data"] = _data()
    found["optional"] = {
        name: {
            "installed": importlib.util.find_spec(name) is not None,
            "for": purpose,
            "install": f"pip install 'poiesis[{extra}]'",
        }
        for name, (extra, purpose) in _OPTIONAL.items()
    }
    found |= _room(problems, notes)
    return {**found, "problems": problems, "notes": notes}


def _torch(problems: list[str], notes: list[str]) -> dict[str, Any]:
    import torch

    from poiesis.models.base import hardware_bf16
    from poiesis.runs import environment

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        problems.append(f"torch {torch.__version__} has unsafe loading: pip install 'torch>=2.10'")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    if usable and threads > usable:
        notes.append(
            f"{threads} threads on {usable} usable cores: set OMP_NUM_THREADS={usable} or "
            f"--train.threads {usable}"
        )
    cpu = torch.device("cpu")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if (
        importlib.util.find_spec("nvidia") is not None
        and not gpus
        and Path("/dev/nvidia0").exists()
    ):
        notes.append(
            "there is an NVIDIA GPU that torch can't use: check its driver and torch's CUDA"
        )
    return {
        "environment": environment(),
        "usable_cores": usable,
        "bf16_hardware": {
            "cpu": hardware_bf16(cpu),
            "gpu": hardware_bf16(torch.device("cuda")) if gpus else None,
        },
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
        "gflops_fp32": {
            "cpu": _speed(cpu),
            **({"gpu": _speed(torch.device("cuda"))} if gpus else {}),
        },
    }


def _speed(device: Any) -> float:
    """Return the billions of fp32 operations a second of a matrix product; takes 0.2 s."""
    import torch

    side = _PROBE if device.type == "cpu" else 8 * _PROBE
    a = torch.rand(side, side, device=device)

    def products(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            result = a @ a
        result[0, 0].item()  # waits for a GPU
        return time.perf_counter() - began

    products(2)
    count = max(1, int(0.1 / max(products(1), 1e-6)))
    return round(2 * side**3 * count / products(count) / 1e9, 1)


def _data() -> dict[str, Any]:
    from poiesis.data.sources import BUILT_IN, NAMED, find, roots

    places = {name: find(name) for name in NAMED}
    return {
        "POIESIS_DATA": os.environ.get("POIESIS_DATA"),
        "folders": {str(root): root.is_dir() for root in roots()},
        "built_in": list(BUILT_IN),
        "sets": {name: None if place is None else str(place) for name, place in places.items()},
    }


def _room(problems: list[str], notes: list[str]) -> dict[str, Any]:
    """Return where runs are written, and what disk and memory are left."""
    here = Path.cwd()
    runs = here / "runs" if (here / "runs").is_dir() else here
    for folder, way in ((runs, "use --out FOLDER"), (Path(tempfile.gettempdir()), "set TMPDIR")):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = error.strerror or error
            problems.append(f"can't write to {folder}: {reason}; {way}")
    disk = shutil.disk_usage(runs).free
    if disk < _LITTLE_DISK:
        notes.append(
            f"only {human_bytes(disk)} of disk free below {runs}: use --out on another disk"
        )
    memory = _free_memory()
    if memory is not None and memory < _LITTLE_MEMORY:
        notes.append(f"only {human_bytes(memory)} of memory free: use small batches and models")
    return {"runs_folder": str(runs), "disk_free": disk, "memory_free": memory}


def _free_memory() -> int | None:
    """Return bytes of free memory, where the system tells (Linux)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    fields = dict(line.split(":") for line in text.splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _print(found: dict[str, Any]) -> None:
    environment = found.get("environment", {})
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    rows = [("versions", f"{versions}, Python {environment.get('python')}")]
    if environment:
        bf16 = found["bf16_hardware"]
        rows += [
            ("platform", environment["platform"]),
            (
                "processor",
                f"{environment['processor']}, {found['usable_cores']} usable cores, "
                f"{environment['threads']} threads, bf16 in hardware: {_yes(bf16['cpu'])}",
            ),
            ("gpu", ", ".join(found["gpus"]) or ("Apple (mps)" if found["mps"] else "none")),
            ("speed", ", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in found["gflops_fp32"].items())),
        ]
    memory = found["memory_free"]
    rows += [
        ("free", f"disk {human_bytes(found['disk_free'])}"),
        ("runs go to", found["runs_folder"]),
    ]
    if memory is not None:
        rows[-2] = ("free", f"disk {human_bytes(found['disk_free'])}, memory {human_bytes(memory)}")
    for folder, there in found["data"]["folders"].items():
        rows.append(("data folder", f"{folder} ({'there' if there else 'not there'})"))
    sets = found["data"]["sets"]
    here = [name for name, place in sets.items() if place]
    rows.append(("data sets", ", ".join([*found["data"]["built_in"], *here])))
    rows.append(("not here", ", ".join(n for n, p in sets.items() if not p) or "none"))
    for name, what in found["optional"].items():
        state = "installed" if what["installed"] else f"missing: {what['install']}"
        rows.append(("optional", f"{name}, for {what['for']}: {state}"))
    for label, text in rows:
        print(f"{label:12} {text}")
    for text in found["notes"]:
        print(f"note         {text}")
    for text in found["problems"]:
        print(f"PROBLEM      {text}")
    if not found["problems"]:
        print("all is well")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
