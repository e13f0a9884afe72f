"""How training speeds up from one process to two: `python benchmarks/scaling.py`.

The same global batch is trained by one process of one thread, one of two threads, and two of one
thread each (gloo). Every setting starts anew in each round, the rounds go forwards and backwards;
figures are medians of the rounds' median steps. One JSON line per setting, then a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}
WORK: dict[str, tuple[str, str, int]] = {
    "vae": ("vae", "mnist", 256),
    "ddpm": ("ddpm", "mnist", 64),
    "dcgan": ("dcgan", "mnist", 64),
    "transformer": ("transformer", "tinyshakespeare", 32),
}
"""Name → model, data, global batch."""


def measure(name: str, steps: int) -> None:
    """Time the steps of one setting; the main process prints seconds and bytes exchanged."""
    import torch

    from poiesis import processes, registry
    from poiesis.data import open_data
    from poiesis.models.trained import build
    from poiesis.training.config import TrainConfig
    from poiesis.training.engine import Engine

    processes.join()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model_name, source, batch = WORK[name]
    data = open_data(source)
    cls = registry.model_class(model_name)
    torch.manual_seed(0)
    model = build(cls, cls.preset("default", data.spec), data.spec, data.condition)
    engine = Engine(model, data, TrainConfig(steps=steps, batch_size=batch), quiet=True)
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        engine.run_step()
        engine.step += 1
        times += processes.largest(time.perf_counter() - began)
    if processes.main():
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        print(json.dumps({"seconds": statistics.median(times[2:]), "bytes": size}))
    processes.leave()


def run(name: str, count: int, threads: int, steps: int) -> dict[str, float]:
    """Start one setting and return what its main process printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(count), __file__, "--measure", name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all settings and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(WORK), help="one model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.steps)
        return
    from poiesis.runs import environment

    machine: dict[str, Any] = environment()
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']}")
    print("| model | batch | bytes summed | " + " | ".join(SETTINGS) + " |")
    print("|---|---|---|" + "---|" * len(SETTINGS))
    for name in [options.only] if options.only else WORK:
        seen: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        size = 0.0
        for number in range(options.rounds):
            for setting in list(SETTINGS)[:: 1 if number % 2 == 0 else -1]:
                found = run(name, *SETTINGS[setting], options.steps)
                seen[setting].append(found["seconds"])
                size = found["bytes"]
        first = statistics.median(seen["one process, one thread"])
        cells = []
        for times in seen.values():
            middle = statistics.median(times)
            cells.append(
                f"{middle:.3f} s ({min(times):.3f} … {max(times):.3f}), {first / middle:.2f}x"
            )
        print(
            f"| {name} | {WORK[name][2]} | {size / 1e6:.1f} MB | " + " | ".join(cells) + " |",
            flush=True,
        )
        if options.out:
            line = {"model": name, "batch": WORK[name][2], "bytes": size, "seconds": seen}
            line |= {"date": datetime.date.today().isoformat(), "machine": machine}
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
