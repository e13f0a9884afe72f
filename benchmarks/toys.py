"""Toys of the plane: do GANs find all modes, and is a collapse noticed.

python benchmarks/toys.py                          both rows, about 50 minutes
python benchmarks/toys.py --row grid --models wgan-gp,r3gan --minutes 3
python benchmarks/toys.py --row ring --seeds 20    one minute a seed

grid: each model learns the 25 Gaussians; 10,000 samples are counted as VEEGAN and PacGAN do, see
`poiesis.metrics.modes`. To reach: 25 of 25 modes and 95% of high quality (true samples: 98.9%).

ring: the plain GAN learns the 8 Gaussians from 20 seeds, as it comes and with a discriminator that
learns ten times as slowly, which makes it collapse (`slow-gan`). Whether a run collapsed is settled
without the monitors, by counting modes at 20 checkpoints: it did if at two of them in a row, from
step 500 on, at most half of the modes had a tenth of their fair share of samples. An alarm of
collapse must have been raised in these runs, and in no other.

A model that this version doesn't list is left out, with a word. What is done is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import poiesis
from poiesis import registry
from poiesis.data.toys import TOYS
from poiesis.errors import PoiesisError
from poiesis.metrics.modes import count_modes
from poiesis.models.trained import load
from poiesis.runs import Run, environment, write_atomic

RESULTS = Path(__file__).parent / "results"
SAMPLES = 10_000
MODES, QUALITY = 25, 0.95
"""To reach on the grid."""
CHECKPOINTS = 20
WATCHED, ALARMS = "health.json", "alarms.jsonl"
"""Files of a run: what the training's monitors go by, and what they noted, a line each."""
COLLAPSE = ("collapse",)
"""Alarms that are about lost variety."""
CHANGED = {"slow-gan": ("gan", {"discriminator_lr": 1e-4})}
"""Models by another name, and what differs from their presets."""
FAIR, HALF, GRACE = 0.1, 0.5, 500
"""A mode lives if it has this share of what is fair; a run has collapsed if no more than half of
them do. Before step 500 a generator need not have spread yet."""


def train(
    name: str, model: str, data: str, seed: int, arguments: argparse.Namespace, **options: Any
) -> Run:
    """Train, or go on where a run was interrupted; raises KeyboardInterrupt if it is again."""
    folder = arguments.runs / name
    model, changes = CHANGED.get(model, (model, {}))
    if (folder / "schedule.json").exists() and Run.open(folder).has_checkpoint():
        run = poiesis.train(resume=folder, quiet=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        run = poiesis.train(
            model,
            data,
            config={"model": changes},
            seed=seed,
            out=folder,
            quiet=True,
            budget=f"{60 * arguments.minutes:g}s",
            threads=arguments.threads,
            **options,
        )
    if run.checkpoint().step < sum(run.read_json("schedule.json")["stage_steps"]):
        raise KeyboardInterrupt(f"{name}: stopped after step {run.checkpoint().step}")
    return run


def count(run: Run, data: str, *, checkpoint: str = "latest", n: int = SAMPLES) -> Any:
    trained, toy = load(run.path, checkpoint=checkpoint), TOYS[data]
    rows = trained.codec.decode(trained.sample_native(n, seed=0, batch_size=1000))
    return count_modes(rows, toy.modes, toy.sigma)


def common(row: str, model: str, seed: int, run: Run, minutes: float) -> dict[str, Any]:
    seconds = [line["train/seconds"] for line in run.metrics() if "train/seconds" in line][-1]
    machine = environment()
    return {
        "row": row,
        "model": model,
        "seed": seed,
        "minutes": minutes,
        "steps": run.checkpoint().step,
        "train_seconds": round(seconds, 1),
        **{k: machine[k] for k in ("date", "processor", "cores", "threads", "versions", "python")},
    }


def run_grid(model: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the grid and count; return the record."""
    name = f"grid-{model}-{arguments.minutes:g}-{seed}"
    run = train(name, model, "grid", seed, arguments)
    found = count(run, "grid")
    return {
        **common("grid", model, seed, run, arguments.minutes),
        "samples": SAMPLES,
        "modes": found.covered,
        "high_quality": round(found.high_quality.value, 4),
        "interval": [round(v, 4) for v in found.high_quality.interval()],
        "kl": round(found.kl.value, 4),
    }


def living(counts: np.ndarray) -> int:
    """Return how many modes have a tenth of their fair share of samples (k,)."""
    return int((counts >= FAIR * counts.sum() / len(counts)).sum()) if counts.sum() else 0


def collapsed(steps: list[int], modes: list[int], of: int) -> bool:
    """Return whether the living modes at some steps say that a run collapsed."""
    few = [m <= HALF * of for s, m in zip(steps, modes, strict=True) if s >= GRACE]
    return any(a and b for a, b in itertools.pairwise(few))


def alarms(run: Run) -> list[dict[str, Any]] | None:
    """Return the alarms about lost variety; None where it had no monitors to raise any."""
    if not (run.path / WATCHED).exists():
        return None
    return [line for line in read(run.path / ALARMS) if line["name"] in COLLAPSE]


def run_ring(model: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the ring, look at all checkpoints and at the alarms; return the record."""
    name = f"ring-{model}-{arguments.minutes:g}-{seed}"
    run = train(name, model, "ring", seed, arguments, checkpoints=CHECKPOINTS, keep=CHECKPOINTS)
    steps = sorted(int(p.name.split("-")[1]) for p in (run.path / "checkpoints").glob("step-*"))
    counts = [count(run, "ring", checkpoint=str(step), n=2000) for step in steps]
    modes = [living(found.nearest) for found in counts]
    raised = alarms(run)
    return {
        **common("ring", model, seed, run, arguments.minutes),
        "checkpoints": steps,
        "modes": modes,
        "high_quality": [round(found.high_quality.value, 4) for found in counts],
        "collapsed": collapsed(steps, modes, len(TOYS["ring"].shapes)),
        "alarms": raised,
    }


def read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def pick(
    records: list[dict[str, Any]], row: str, minutes: float
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return (model, seed) → its newest record of a row of so many minutes."""
    return {
        (r["model"], r["seed"]): r for r in records if (r["row"], r["minutes"]) == (row, minutes)
    }


def grid_table(done: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """Return the lines of the grid's table."""
    lines = [
        "## grid: 25 Gaussians",
        "",
        f"To reach: {MODES} of {MODES} modes, high quality ≥ {QUALITY:.0%} (true samples: 98.9%).",
        "",
        "| model | seed | minutes | steps | modes | high quality | KL, nats | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, seed), r in sorted(done.items()):
        low, high = r["interval"]
        reached = r["modes"] == MODES and r["high_quality"] >= QUALITY
        lines.append(
            f"| {model} | {seed} | {r['minutes']:g} | {r['steps']:,} | {r['modes']} | "
            f"{r['high_quality']:.1%} [{low:.1%}, {high:.1%}] | {r['kl']:.4f} | "
            f"{'yes' if reached else '**no**'} |"
        )
    return lines


def fewest(record: dict[str, Any]) -> int:
    """Return the fewest living modes at a checkpoint from step 500 on."""
    pairs = zip(record["checkpoints"], record["modes"], strict=True)
    return min((m for s, m in pairs if s >= GRACE), default=record["modes"][-1])


def ring_table(done: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """Return the lines of the ring's table: collapses against alarms, run by run."""
    lines = [
        "## ring: 8 Gaussians, plain GAN",
        "",
        "slow-gan: its discriminator learns ten times as slowly.",
        "To reach: an alarm in the runs that collapse, and in those alone.",
        "",
        "| model | seed | steps | fewest modes | modes at the end | collapsed | alarm |",
        "|---|---|---|---|---|---|---|",
    ]
    table = {(c, a): 0 for c in (True, False) for a in (True, False)}
    unwatched = 0
    for (model, seed), r in sorted(done.items()):
        raised, modes = r["alarms"], r["modes"]
        alarm = "not watched"
        if raised is None:
            unwatched += 1
        else:
            table[r["collapsed"], bool(raised)] += 1
            first = f"from step {raised[0]['since']:,}" if raised else "none"
            alarm = first if bool(raised) == r["collapsed"] else f"**{first}**"
        lines.append(
            f"| {model} | {seed} | {r['steps']:,} | {fewest(r)} | {modes[-1]} "
            f"| {'yes' if r['collapsed'] else 'no'} | {alarm} |"
        )
    fell = sum(r["collapsed"] for r in done.values())
    lines += ["", f"{fell} of {len(done)} runs collapsed."]
    if unwatched:
        lines.append(f"{unwatched} runs had no monitors, so their alarms are not known.")
    else:
        right = table[True, True] + table[False, False]
        lines.append(
            f"Alarms: {table[True, True]} of {fell} collapses found, {table[False, True]} false "
            f"ones. Reached: {'yes' if right == len(done) else '**no**'}."
        )
    return lines


def work(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "toys.jsonl"
    rows = ("grid", "ring") if arguments.row == "both" else (arguments.row,)
    for row in rows:
        run_one = run_grid if row == "grid" else run_ring
        named = arguments.models or ("wgan-gp,r3gan" if row == "grid" else "gan,slow-gan")
        seeds = arguments.seeds or (1 if row == "grid" else 20)
        arguments.minutes = arguments.budget or (3.0 if row == "grid" else 1.0)
        for model in named.split(","):
            if CHANGED.get(model, (model,))[0] not in registry.names():
                print(f"{model} is not listed in this version: left out", file=sys.stderr)
                continue
            for seed in range(seeds):
                if (model, seed) in pick(read(file), row, arguments.minutes):
                    continue
                record = run_one(model, seed, arguments)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                say = f"modes {record['modes']}, high quality {record['high_quality']}"
                print(f"{row}, {model}, seed {seed}: {say}", file=sys.stderr, flush=True)
        done = pick(read(file), row, arguments.minutes)
        if not done:
            continue
        lines = grid_table(done) if row == "grid" else ring_table(done)
        last = max(done.values(), key=lambda r: r["date"])
        spent = sum(r["train_seconds"] for r in done.values()) / 60
        lines.append(
            f"\nTraining {spent:.1f} min in all; {last['date'][:10]}, {last['threads']} threads of "
            f"{last['processor']}, torch {last['versions']['torch']}."
        )
        page = "\n".join(lines) + "\n"
        write_atomic(arguments.out / f"toys-{row}.md", page)
        print(page)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=("both", "grid", "ring"), default="both")
    parser.add_argument("--models", default="", help="by name, separated by commas")
    parser.add_argument("--seeds", type=int, default=0, help="how many (default: grid 1, ring 20)")
    parser.add_argument(
        "--minutes", dest="budget", type=float, default=0, help="a run (default: grid 3, ring 1)"
    )
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--runs", type=Path, default=Path("runs/toys"), help="training runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        work(arguments)
    except PoiesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop}; the same command goes on from here".removeprefix("; "), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
