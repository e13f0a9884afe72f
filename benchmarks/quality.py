"""Train the models on real data under fixed budgets and score them: a table, JSON lines, pictures.

python benchmarks/quality.py                    every row that is not finished yet, then the table
python benchmarks/quality.py vae text-6min      these rows only
python benchmarks/quality.py --list             what the rows are, and which are finished
python benchmarks/quality.py --pace             steps that fit the minutes, for --steps-from

A row's budget is minutes of training on two quiet cores, or steps. On a machine that is busy, first
measure the pace in a quiet moment with --pace, then train that many steps with --steps-from: the
result differs by rounding alone. A row that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import poiesis
from poiesis.config import parse_duration
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, PoiesisError
from poiesis.evaluation.images import default_extractor, draw_reference, evaluate_images
from poiesis.evaluation.protocol import EvaluationConfig
from poiesis.models.trained import load
from poiesis.runs import Run, environment, write_atomic
from poiesis.spec import Grid
from quality_rows import ROWS, Row, Values
from textbook import TEXTBOOKS, fit

RESULTS = Path(__file__).parent / "results"
SHOWN = 100
"""Samples in a picture grid: the first ones, not picked."""

# -- one row ------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def train(row: Row, folder: Path, scale: float, steps: int | None) -> tuple[Path, int, float]:
    """Train a model of ours, or go on with it; return its run, steps and seconds."""
    how: dict[str, Any] = {"threads": torch.get_num_threads(), "grids": 4, "validations": 10}
    if steps is not None:
        how["steps"] = steps
    else:
        how["budget"] = f"{60 * scale * (row.minutes or 0):.0f}s"
    if (folder / "schedule.json").exists() and Run.open(folder).has_checkpoint():
        # The length stands in schedule.json; a finished run ends at once.
        run = poiesis.train(resume=folder, quiet=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        run = poiesis.train(
            row.model,
            row.data,
            preset=row.preset,
            config={"data": row.options, "model": row.changes},
            seed=row.seed,
            out=folder,
            quiet=True,
            **how,
        )
    done, wanted = run.checkpoint().step, sum(run.read_json("schedule.json")["stage_steps"])
    if done < wanted:
        raise KeyboardInterrupt(f"{row.name}: stopped after step {done} of {wanted}")
    seconds = [line["train/seconds"] for line in run.metrics() if "train/seconds" in line]
    return run.path, done, seconds[-1]


def score_likelihood(row: Row, path: Path) -> tuple[Values, list[Any]]:
    """Return the likelihood of all held-out data by `poiesis.evaluate`, and samples."""
    text = row.score == "text"
    config = EvaluationConfig(
        likelihood_rows=10**9,
        likelihood_samples=500 if row.score == "importance" else None,
        samples=8 if text else 500,
        seed=row.seed,
    )
    found = poiesis.evaluate(path, config)
    values = {number.name: number.value for number in found.numbers}
    wanted = ["nll_per_token", "bits_per_char"] if text else ["nll", "bits_per_dim"]
    kept = {name: values[name] for name in wanted}
    kept["standard_error"] = _standard_error(found[wanted[0]])
    trained = load(path)
    if text:
        return kept, trained.sample(1, seed=row.seed, prompt="\n", length=600)
    return kept, trained.sample(SHOWN, seed=row.seed)


def _standard_error(number: Any) -> float:
    low, high = number.interval
    return (high - low) / 2 / 1.96


def score_images(row: Row, generated: torch.Tensor) -> Values:
    """Return FID, precision, recall and the classes of uint8 images, as `poiesis.evaluate` does."""
    data = open_data(row.data, DataConfig(source=row.data, **row.options))
    assert isinstance(data.spec, Grid)
    extractor = default_extractor(data.name, data.spec)
    test = data.splits["test"]
    chosen = draw_reference(torch.arange(len(test)), len(generated), row.seed)
    real, _ = test.fetch(chosen)
    numbers = evaluate_images(
        generated, real, extractor, data=data.name, variant=data.variant, split="test"
    )
    values = {number.name: number.value for number in numbers}
    logits = extractor.head(extractor.features(generated))
    shares = logits.argmax(1).bincount(minlength=extractor.classes).double() / len(generated)
    sure = logits.softmax(1).amax(1) > 0.9
    values |= {
        "smallest_class": float(shares.min()),
        "largest_class": float(shares.max()),
        "sure_of_class": float(sure.double().mean()),
    }
    return {
        name: values[name]
        for name in (
            *("fid", "kid", "precision", "recall", "density", "coverage", "inception_score"),
            *("smallest_class", "largest_class", "sure_of_class"),
        )
    }


def run_textbook(
    row: Row, folder: Path, scale: float, steps: int | None
) -> tuple[torch.Tensor, int, float, float]:
    """Train a textbook loop; return uint8 samples (n, 1, 28, 28), steps, and two times."""
    torch.manual_seed(row.seed)
    loop = TEXTBOOKS[row.textbook]()
    images = open_data(row.data).splits["train"].x
    folder.mkdir(parents=True, exist_ok=True)
    done, seconds = fit(
        loop,
        images,
        seconds=None if row.minutes is None else 60 * scale * row.minutes,
        steps=steps,
        state=folder / "state.pt",
        seed=row.seed,
        say=lambda step, spent: say(f"{row.name}: step {step}, {spent:.0f} s"),
    )
    torch.manual_seed(row.seed)
    began = time.monotonic()
    drawn = loop.sample(row.samples)[:, :, 2:30, 2:30]
    pixels = ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels, done, seconds, time.monotonic() - began


def run_row(row: Row, out: Path, folder: Path, scale: float, steps: int | None) -> dict[str, Any]:
    """Train and score one row; write its picture or text; return its record."""
    if steps is None and row.steps is not None:
        steps = max(1, round(row.steps * scale))
    began = time.monotonic()
    sampling = None
    samples: list[Any] = []
    about: dict[str, Any] = {}
    if row.textbook:
        pixels, done, seconds, sampling = run_textbook(row, folder, scale, steps)
        values = score_images(row, pixels)
        codec = open_data(row.data).codec
        samples = [codec.decode(image) for image in pixels[:SHOWN]]
    else:
        path, done, seconds = train(row, folder, scale, steps)
        say(f"{row.name}: {done} steps in {seconds:.0f} s; scoring")
        trained = load(path)
        about = {
            "config": trained.config["model"],
            "conditional": trained.model.condition is not None,
        }
        about["parameters"] = sum(p.numel() for p in trained.model.parameters())
        if row.score == "images":
            start = time.monotonic()
            pixels = trained.sample_native(row.samples, seed=row.seed, batch_size=100)
            sampling = time.monotonic() - start
            values = score_images(row, pixels)
            samples = [trained.codec.decode(image) for image in pixels[:SHOWN]]
        else:
            values, samples = score_likelihood(row, path)
    if samples and isinstance(samples[0], str):
        (out / f"quality-{row.name}.txt").write_text(samples[0], encoding="utf-8")
    else:
        sheet(samples).save(out / f"quality-{row.name}.png", optimize=True)
    machine = environment()
    return {
        "row": row.name,
        "what": row.what,
        "value": values,
        "gate": row.gate,
        "minutes": row.minutes,
        "scale": scale,
        "steps": done,
        "steps_given": steps is not None,
        "train_seconds": round(seconds, 1),
        "sample_seconds": None if sampling is None else round(sampling, 1),
        "all_seconds": round(time.monotonic() - began, 1),
        "seed": row.seed,
        **about,
        **{k: machine[k] for k in ("date", "processor", "cores", "threads", "versions", "python")},
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def sheet(pictures: list[Image.Image], columns: int = 10) -> Image.Image:
    """Return equal pictures as a dense grid, small ones enlarged."""
    width, height = pictures[0].size
    factor = max(1, 28 // max(width, height))
    width, height = width * factor, height * factor
    rows = -(-len(pictures) // columns)
    grid = Image.new("L", (columns * (width + 2) + 2, rows * (height + 2) + 2), 96)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        tile = picture.convert("L").resize((width, height), Image.Resampling.NEAREST)
        grid.paste(tile, (2 + column * (width + 2), 2 + row * (height + 2)))
    return grid


# -- steps that fit -----------------------------------------------------------------------------


def pace(row: Row, seconds: float) -> dict[str, Any]:
    """Return the steps of a row that fit into its minutes, by timing some now."""
    began_load = os.getloadavg()[0]
    if row.textbook:
        loop = TEXTBOOKS[row.textbook]()
        images = open_data(row.data).splits["train"].x
        with tempfile.TemporaryDirectory() as folder:
            fit(loop, images, steps=2, state=Path(folder) / "warm.pt")
            done, spent = fit(loop, images, seconds=seconds, state=Path(folder) / "state.pt")
    else:
        from poiesis.training.engine import Engine
        from poiesis.training.verb import resolve

        config = DataConfig(source=row.data, **row.options)
        data = open_data(row.data, config)
        resolved = resolve(row.model, data, config, preset=row.preset, model=row.changes)
        model = poiesis.registry.model_class(row.model)
        condition = data.condition if getattr(resolved.model, "conditional", False) else None
        net = model(resolved.model, model.view(resolved.model, data.spec), condition)
        engine = Engine(net, data, resolved.train, quiet=True)
        engine.prepare()
        for _ in range(2):
            engine.run_step()
        done, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            engine.run_step()
            engine.step += 1
            done += 1
        spent = time.monotonic() - began
    each = spent / done
    return {
        "steps": row.steps or int(60 * (row.minutes or 0) / each),
        "seconds_per_step": round(each, 5),
        "threads": torch.get_num_threads(),
        "load_before": round(began_load, 2),
        "date": environment()["date"],
    }


# -- the table ----------------------------------------------------------------------------------


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the newest full record of each row."""
    records: dict[str, dict[str, Any]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["scale"] == 1:
                records[record["row"]] = record
    return records


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown page."""
    values = {name: record["value"] for name, record in records.items()}
    lines = [
        "# Quality on real data",
        "",
        "Made by `python benchmarks/quality.py`; every line's full record is in `quality.jsonl`.",
        "Minutes are training time on two quiet cores. Lines trained with one thread, on a busy",
        "machine, did at most the steps that fit into these minutes by the pace of two threads in",
        "a quiet moment (`quality-pace.json`).",
        "",
        "| what | budget | steps | training | result | gate | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        budget = f"{row.minutes:g} min" if row.minutes else f"{row.steps:,} steps"
        if row.name not in records:
            lines.append(f"| {row.what} | {budget} | – | – | not run yet | {row.gate or '–'} | – |")
            continue
        record = records[row.name]
        verdict = row.reached(record["value"], values)
        threads = record["threads"]
        spent = f"{record['train_seconds'] / 60:.1f} min, {threads} thread{'s' * (threads > 1)}"
        word = {True: "yes", False: "**no**", None: "–"}[verdict]
        result = describe(row, record["value"])
        steps = f"{record['steps']:,}"
        fit_in = record.get("pace", {}).get("steps", record["steps"])
        if fit_in != record["steps"]:
            steps += f" of {fit_in:,} that fit"
        what = row.what + (", by class in turn" if record.get("conditional") else "")
        cells = (what, budget, steps, spent, result, row.gate or "–", word)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *pictures(records), ""]
    dates = sorted(record["date"][:10] for record in records.values())
    if records:
        last = max(records.values(), key=lambda record: record["date"])
        span = " to ".join(sorted({dates[0], dates[-1]}))
        versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items() if k != "pillow")
        lines += [
            f"Measured {span} on {last['cores']} cores of {last['processor']}, "
            f"Python {last['python']}, {versions}; seed 0, one run a line.",
            "",
        ]
    return "\n".join(lines)


def describe(row: Row, value: Values) -> str:
    """Return a row's result in words."""
    if row.score == "images":
        return (
            f"FID {value['fid']:.2f}, precision {value['precision']:.2f}, recall "
            f"{value['recall']:.2f}, classes {100 * value['smallest_class']:.1f} … "
            f"{100 * value['largest_class']:.1f}%, clear {100 * value['sure_of_class']:.0f}%"
        )
    if row.score == "text":
        error = value["standard_error"]
        return f"**{value['nll_per_token']:.3f}** ± {error:.3f} nats a character"
    if row.score == "importance":
        return f"**{value['nll']:.2f}** ± {value['standard_error']:.2f} nats, IWAE(500)"
    return f"**{value['bits_per_dim']:.3f}** bits/dim, exact"


def pictures(records: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Return Markdown of the picture grids, a textbook's beside ours."""
    for row in ROWS:
        if row.name not in records or row.score == "text" or row.textbook:
            continue
        plain = f"{row.name}-plain"
        if plain in records:
            yield f"\n{row.what}: ours left, the textbook loop right; the first {SHOWN} in order.\n"
            yield f"![ours](quality-{row.name}.png) ![textbook](quality-{plain}.png)"
        else:
            yield f"\n{row.what}; the first {SHOWN}, in order.\n"
            yield f"![samples](quality-{row.name}.png)"
    for row in ROWS:
        if row.name in records and row.score == "text":
            yield f"\n{row.what}: [a sample](quality-{row.name}.txt)."


# -- the command --------------------------------------------------------------------------------


def pick(names: list[str]) -> list[Row]:
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ConfigError(f"no row {name!r}; known: {', '.join(known)}")
    return [known[name] for name in names] if names else list(ROWS)


def work(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    file = out / "quality.jsonl"
    records, rows = read(file), pick(arguments.rows)
    if arguments.list:
        for row in ROWS:
            mark = "done" if row.name in records else "    "
            budget = f"{row.minutes:g} min" if row.minutes else f"{row.steps} steps"
            print(f"{row.name:20} {mark}  {budget:10}  {row.what}  {row.gate}")
        return
    if arguments.pace:
        pace_file = out / "quality-pace.json"
        paces = json.loads(pace_file.read_text()) if pace_file.exists() else {}
        for row in rows:
            paces[row.name] = pace(row, parse_duration(arguments.pace))
            say(f"{row.name}: {paces[row.name]}")
            write_atomic(pace_file, json.dumps(paces, indent=1) + "\n")
        return
    given = json.loads(arguments.steps_from.read_text()) if arguments.steps_from else {}
    scale = arguments.minutes_scale
    for row in [] if arguments.table else rows:
        if row.name in records and scale == 1 and not arguments.again:
            continue
        steps = None
        if row.minutes is not None and row.name in given:
            steps = max(1, round(given[row.name]["steps"] * scale))
        say(f"{row.name}: {row.what}")
        folder = arguments.runs / (row.name if scale == 1 else f"{row.name}-x{scale:g}")
        if arguments.again and (folder / "finished").exists():
            shutil.rmtree(folder)
        record = run_row(row, out, folder, scale, steps)
        if row.name in given:
            record["pace"] = given[row.name]
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        say(f"{row.name}: {describe(row, record['value'])}")
        (folder / "finished").touch()
        records = read(file)
        write_atomic(out / "quality.md", table(records))
    write_atomic(out / "quality.md", table(records))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="rows to run; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is and leave")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--again", action="store_true", help="run finished rows anew")
    parser.add_argument("--pace", metavar="TIME", help="only time each row for so long, e.g. 10s")
    parser.add_argument("--steps-from", type=Path, help="file that --pace wrote: train its steps")
    parser.add_argument("--minutes-scale", type=float, default=1.0, help="shorten every budget")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="training runs")
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
