"""Rows of a benchmark that train under a budget: what quality.py and autoencoders.py share.

A row's budget is minutes of training on two quiet cores, or steps. On a machine that is busy, first
measure the pace in a quiet moment with --pace, then train that many steps with --steps-from: the
result differs by rounding alone. A row that was interrupted goes on where it stopped; a finished
one is not run again.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import poiesis
from poiesis.config import parse_duration
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, PoiesisError
from poiesis.runs import Run, environment, write_atomic
from textbook import TEXTBOOKS, fit

__all__ = [
    "RESULTS",
    "SHOWN",
    "Bench",
    "Records",
    "Row",
    "Values",
    "all_of",
    "command",
    "measured",
    "record",
    "rows_table",
    "say",
    "sheet",
    "train",
    "within",
]

RESULTS = Path(__file__).parent / "results"
SHOWN = 100
"""Samples in a picture grid: the first ones, not picked."""

Values = dict[str, float]
Records = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    model: str
    """Registry name, or a key of TEXTBOOKS with a "plain " before it."""
    data: str
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the data, by the names of `poiesis.data.config`."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Options of the model that differ from the preset."""
    minutes: float | None = None
    steps: int | None = None
    score: str = "images"
    samples: int = 5000
    seed: int = 0
    gate: str = ""
    reached: Callable[[Values, dict[str, Values]], bool | None] = lambda own, others: None
    """Takes the row's values and those of all finished rows; None: no gate or not known yet."""

    @property
    def textbook(self) -> str:
        """Key of the textbook loop, empty for models of ours."""
        return self.model.removeprefix("plain ") if self.model.startswith("plain ") else ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A table: its rows, and how one is scored and told."""

    stem: str
    """Name of its files: STEM.jsonl, STEM.md, STEM-pace.json."""
    rows: Sequence[Row]
    run: Callable[[Row, Path, Path, float, int | None], dict[str, Any]]
    """Takes a row, the folder of results, that of its run, the scale of budgets and the steps, if
    given; returns the record."""
    describe: Callable[[Row, Values], str]
    """Returns a row's result in words."""
    table: Callable[[Records], str]
    """Returns the Markdown page of the finished rows."""


def all_of(
    *conditions: Callable[[Values, dict[str, Values]], bool | None],
) -> Callable[[Values, dict[str, Values]], bool | None]:
    """Return a gate of several: False if one is missed, None if one is not known yet."""

    def reached(own: Values, others: dict[str, Values]) -> bool | None:
        found = [condition(own, others) for condition in conditions]
        return False if False in found else None if None in found else True

    return reached


def within(name: str, low: float = -1e9, high: float = 1e9) -> Callable[..., bool]:
    """Return a gate: a value between two bounds."""
    return lambda own, others: low <= own[name] <= high


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


def record(
    row: Row, values: Values, *, scale: float, steps: int, given: bool, seconds: float, **about: Any
) -> dict[str, Any]:
    """Return what is known of a finished row. given: its steps were, not its time."""
    machine = environment()
    return {
        "row": row.name,
        "what": row.what,
        "value": values,
        "gate": row.gate,
        "minutes": row.minutes,
        "scale": scale,
        "steps": steps,
        "steps_given": given,
        "train_seconds": round(seconds, 1),
        **about,
        "seed": row.seed,
        **{k: machine[k] for k in ("date", "processor", "cores", "threads", "versions", "python")},
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def sheet(pictures: list[Image.Image], columns: int = 10) -> Image.Image:
    """Return equal pictures as a dense grid, small ones enlarged."""
    width, height = pictures[0].size
    factor = max(1, 28 // max(width, height))
    width, height = width * factor, height * factor
    rows = -(-len(pictures) // columns)
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    grid = Image.new(mode, (columns * (width + 2) + 2, rows * (height + 2) + 2), "#606060")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        tile = picture.convert(mode).resize((width, height), Image.Resampling.NEAREST)
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
        each = spent / done
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
        total = sum(stage.share for stage in engine.stages)
        each = 0.0
        for index, stage in enumerate(engine.stages):
            engine.enter(index)
            for _ in range(2):
                engine.run_step()
            done, began = 0, time.monotonic()
            while time.monotonic() - began < seconds / len(engine.stages):
                engine.run_step()
                engine.step += 1
                done += 1
            each += stage.share / total * (time.monotonic() - began) / done
    return {
        "steps": row.steps or int(60 * (row.minutes or 0) / each),
        "seconds_per_step": round(each, 5),
        "threads": torch.get_num_threads(),
        "load_before": round(began_load, 2),
        "date": environment()["date"],
    }


# -- the table ----------------------------------------------------------------------------------


def rows_table(
    stem: str, rows: Sequence[Row], records: Records, describe: Callable[[Row, Values], str]
) -> list[str]:
    """Return the lines of a Markdown table: budget, steps, time, result and gate of each row."""
    lines = [
        "Minutes are training time on two quiet cores. Lines trained with one thread, on a busy",
        "machine, did at most the steps that fit into these minutes by the pace of two threads in",
        f"a quiet moment (`{stem}-pace.json`).",
        "",
        "| what | budget | steps | training | result | gate | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    values = {name: found["value"] for name, found in records.items()}
    for row in rows:
        budget = f"{row.minutes:g} min" if row.minutes else f"{row.steps:,} steps"
        if row.name not in records:
            lines.append(f"| {row.what} | {budget} | – | – | not run yet | {row.gate or '–'} | – |")
            continue
        found = records[row.name]
        threads = found["threads"]
        spent = f"{found['train_seconds'] / 60:.1f} min, {threads} thread{'s' * (threads > 1)}"
        word = {True: "yes", False: "**no**", None: "–"}[row.reached(found["value"], values)]
        steps = f"{found['steps']:,}"
        fit_in = found.get("pace", {}).get("steps", found["steps"])
        if fit_in != found["steps"]:
            steps += f" of {fit_in:,} that fit"
        what = row.what + (", by class in turn" if found.get("conditional") else "")
        result = describe(row, found["value"])
        cells = (what, budget, steps, spent, result, row.gate or "–", word)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measured(records: Records) -> str:
    """Return a line that says when and on what."""
    dates = sorted(found["date"][:10] for found in records.values())
    last = max(records.values(), key=lambda found: found["date"])
    span = " to ".join(sorted({dates[0], dates[-1]}))
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items() if k != "pillow")
    return (
        f"Measured {span} on {last['cores']} cores of {last['processor']}, "
        f"Python {last['python']}, {versions}; seed 0, one run a line."
    )


def read(file: Path) -> Records:
    """Return the newest full record of each row."""
    records: Records = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["scale"] == 1:
                records[record["row"]] = record
    return records


# -- the command --------------------------------------------------------------------------------


def pick(rows: Sequence[Row], names: list[str]) -> list[Row]:
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(f"no row {name!r}; known: {', '.join(known)}")
    return [known[name] for name in names] if names else list(rows)


def work(bench: Bench, arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{bench.stem}.jsonl"
    records, rows = read(file), pick(bench.rows, arguments.rows)
    if arguments.list:
        for row in bench.rows:
            mark = "done" if row.name in records else "    "
            budget = f"{row.minutes:g} min" if row.minutes else f"{row.steps} steps"
            print(f"{row.name:20} {mark}  {budget:10}  {row.what}  {row.gate}")
        return
    if arguments.pace:
        pace_file = out / f"{bench.stem}-pace.json"
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
        found = bench.run(row, out, folder, scale, steps)
        if row.name in given:
            found["pace"] = given[row.name]
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found, ensure_ascii=False) + "\n")
        say(f"{row.name}: {bench.describe(row, found['value'])}")
        (folder / "finished").touch()
        records = read(file)
        write_atomic(out / f"{bench.stem}.md", bench.table(records))
    write_atomic(out / f"{bench.stem}.md", bench.table(records))


def command(bench: Bench, about: str) -> int:
    """Run the command line of a benchmark; about: its docstring."""
    runs = Path("runs") / bench.stem
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
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
    parser.add_argument("--runs", type=Path, default=runs, help="training runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        work(bench, arguments)
    except PoiesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop}; the same command goes on from here".removeprefix("; "), file=sys.stderr)
        return 130
    return 0
