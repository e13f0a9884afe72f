"""Whether bf16 trains as well as float32: loss curves of the four models, next to seed noise.

python benchmarks/precision.py --steps 200 --seeds 3 --out precision.jsonl

Each model trains on scikit-learn's digits with its default preset in float32 and in bf16 autocast,
from the same weights with the same data order and noise. A loss is the mean over a quarter of the
run. The difference of the two precisions is set against the standard deviation of float32 between
seeds: below about 1 it is less than what another seed would have changed. Where the processor
lacks bf16 it is emulated, with the same rounding, slowly.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import torch

import poiesis
from poiesis import registry
from poiesis.data import open_data
from poiesis.data.dataset import DataSet
from poiesis.models.base import hardware_bf16
from poiesis.models.trained import build
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine

MODELS = ("vae", "dcgan", "ddpm", "transformer")
QUARTERS = 4

Curves = dict[str, list[float]]
"""Loss name → its mean over each quarter of the run; "held out" has one value, at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    if args.seeds < 2 or args.steps < QUARTERS:
        sys.exit(f"give at least 2 seeds and {QUARTERS} steps: noise is what seeds differ by")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    data = open_data("digits")
    lines = []
    for name in MODELS:
        if args.only in name:
            lines += compare(name, data, args.steps, args.seeds, device)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print(table(lines))


def train(
    name: str,
    data: DataSet,
    steps: int,
    seed: int,
    precision: Literal["fp32", "bf16"],
    device: torch.device,
) -> Curves:
    """Train once; return the curves of the phases' losses, and the held-out one if there is one."""
    cls = registry.model_class(name)
    config = cls.preset("default", data.spec)
    torch.manual_seed(seed)
    model = build(cls, config, data.spec, data.condition, device=device)
    train_config = TrainConfig(
        steps=steps, precision=precision, grids=0, validations=0, checkpoints=0
    )
    engine = Engine(model, data, train_config, seed=seed, quiet=True)
    engine.prepare()
    phases = [phase.name for phase in engine.stages[0].phases]
    values: dict[str, list[float]] = {phase: [] for phase in phases}
    for _ in range(steps):
        logs = engine.run_step()
        engine.step += 1
        for phase in phases:
            values[phase].append(float(logs[phase]))
    size = steps // QUARTERS
    curves = {
        phase: [statistics.fmean(v[q * size : (q + 1) * size]) for q in range(QUARTERS)]
        for phase, v in values.items()
    }
    # What is judged is what was learned, so both are judged in float32.
    engine.config = TrainConfig(steps=steps, precision="fp32")
    held_out = engine.validate()
    if held_out:
        curves["held out"] = [next(iter(held_out.values()))]
    return curves


def compare(
    name: str, data: DataSet, steps: int, seeds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Train a model with several seeds in both precisions; return a line per loss."""
    runs = []
    for seed in range(seeds):
        print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        runs.append({p: train(name, data, steps, seed, p, device) for p in ("fp32", "bf16")})
    lines = []
    for loss in runs[0]["fp32"]:
        quarters = []
        for quarter in range(len(runs[0]["fp32"][loss])):
            full = [run["fp32"][loss][quarter] for run in runs]
            low = [run["bf16"][loss][quarter] for run in runs]
            differences = [b - a for a, b in zip(full, low, strict=True)]
            quarters.append(
                {
                    "fp32": statistics.fmean(full),
                    "bf16": statistics.fmean(low),
                    "difference": statistics.fmean(differences),
                    "differences": differences,
                    "seed_spread": statistics.stdev(full),
                }
            )
        lines.append(
            {
                "date": datetime.date.today().isoformat(),
                "model": name,
                "loss": loss,
                "data": data.variant,
                "steps": steps,
                "seeds": seeds,
                "quarters": quarters,
                "bf16_hardware": hardware_bf16(device),
                "device": device.type,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "poiesis": poiesis.__version__,
            }
        )
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Return Markdown: the last quarter of each loss, and the worst quarter's ratio."""
    rows = [
        "| model | loss | fp32 | bf16 | difference | seeds differ by | ratio, quarter by quarter |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for line in lines:
        last = line["quarters"][-1]
        ratios = ", ".join(
            f"{abs(q['difference']) / max(q['seed_spread'], 1e-12):.2f}" for q in line["quarters"]
        )
        rows.append(
            f"| {line['model']} | {line['loss']} | {last['fp32']:.4f} | {last['bf16']:.4f} "
            f"| {last['difference']:+.4f} | {last['seed_spread']:.4f} | {ratios} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
