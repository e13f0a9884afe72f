"""Equal-budget comparison: many models, one data set, the same time, the same passport.

    out/<model>/       the runs          out/comparison.json   settings and rows
    out/report.html    everything side by side

The same call again goes on where it was stopped: what is finished is kept, what failed is tried
again, and further models may join; other settings are refused, for they would not be equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from poiesis import config as configs
from poiesis import processes, registry
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.errors import ConfigError, PoiesisError, RunError
from poiesis.evaluation.passport import Number, PassportMismatch, check_same, compare_numbers
from poiesis.evaluation.protocol import EvaluationConfig, evaluate
from poiesis.models.trained import load
from poiesis.reporting.page import Cell, Leaderboard, comparison_page
from poiesis.reporting.sections import NAMES, duration, short
from poiesis.runs import Run, write_atomic
from poiesis.runs import dump_json as to_text
from poiesis.training.verb import train

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "Row", "compare"]

FILE = "comparison.json"
"""Name of the saved comparison."""
_RANKED_BY = ("fid", "frechet_distance", "motion_fid", "bits_per_char", "bits_per_dim")
"""Numbers that may order the table: the first that all models have and that can be compared."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one model."""

    model: str
    """Name as given, with its preset: ``vae:tutorial``."""
    run: str = ""
    failure: str = ""
    """Why there are no numbers; empty where all went well."""
    steps: int = 0
    seconds: float = 0.0
    """Wall-clock time of training, its probe and grids included, as used."""
    parameters: int = 0
    peak_memory: int | None = None
    """Largest memory in bytes while training: of the GPU, else of the whole process (with the
    interpreter and the data); None where the system does not tell."""
    numbers: tuple[Number, ...] = ()

    def number(self, name: str) -> Number | None:
        """Return a number by name, None if the model has none such."""
        return next((n for n in self.numbers if n.name == name), None)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Read back a row; raises RunError for anything else."""
        try:
            numbers = tuple(Number.from_json(n) for n in data["numbers"])
            return cls(**{**data, "numbers": numbers})
        except (TypeError, KeyError):
            raise RunError(f"the {FILE} of this comparison is damaged: delete it") from None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcome, rows in the order of the leaderboard."""

    path: Path
    report: Path
    settings: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def runs(self) -> dict[str, Run]:
        """The trained runs by model name."""
        return {row.model: Run(row.run) for row in self.rows if not row.failure}

    def best(self, name: str) -> set[str]:
        """Return the models that none is better than beyond doubt (intervals apart) in a number.

        Raises PassportMismatch where it was not measured in the same way, ConfigError if no model
        has it.
        """
        return _best(self.rows, name)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"settings": self.settings, "report": str(self.report), "rows": rows}

    def table(self) -> Table:
        """Return the leaderboard as a rich table, a column per model, which fits a terminal."""
        from rich.markup import escape
        from rich.table import Table

        board = _leaderboard(self.rows)
        well = [row for row in board.rows if len(row) == len(board.columns)]
        notes = [f"{row[0].text} failed: {row[1].text}" for row in board.rows if row not in well]
        table = Table(
            title=_title(self.settings), caption=escape("\n".join([*notes, *board.notes]))
        )
        table.add_column("")
        for row in well:
            table.add_column(escape(row[0].text), justify="right")
        for place, (name, better) in enumerate(board.columns[1:], start=1):
            arrow = {"higher is better": " ↑", "lower is better": " ↓"}.get(better, "")
            cells = []
            for cell in (row[place] for row in well):
                text = f"[bold green]{escape(cell.text)}[/]" if cell.best else escape(cell.text)
                cells.append(f"{text}\n[dim]{escape(cell.note)}[/]" if cell.note else text)
            table.add_row(name + arrow, *cells)
        return table


def compare(
    models: Sequence[str],
    data: str,
    *,
    budget: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    samples: int | None = None,
    preset: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **train_options: Any,
) -> Comparison:
    """Train models one after another under equal time, judge them alike, write the leaderboard.

    models: names, each with a preset if wanted (``vae:tutorial``), else `preset` or its own.
    budget: time for each (default 5m), or steps= or epochs= among train_options, which are fields
    of TrainConfig. samples: to judge on; None is as many as there are real ones. out: default
    runs/<data>-comparison/<time>/. data_options: fields of DataConfig. A model that fails stands in
    the table with its reason. Raises ConfigError for unknown names, DataError, and RunError if
    `out` holds another comparison or training was stopped.
    """
    if isinstance(models, str) or not models:
        raise ConfigError("say which models to compare, e.g. compare(['vae', 'ddpm'], 'digits')")
    for model in models:
        registry.entry(model.partition(":")[0])
    if len(set(models)) < len(models):
        raise ConfigError(f"a model is named twice in: {', '.join(models)}")
    options = {name: value for name, value in train_options.items() if value is not None}
    if budget is not None or not {"steps", "epochs"} & set(options):
        options["budget"] = budget or "5m"
    protocol = EvaluationConfig(samples=samples, seed=seed)
    data_config = configs.from_dict(DataConfig, {"source": data, **(data_options or {})})
    processes.join()
    opened = open_data(data, data_config)
    settings = {
        "data": configs.to_dict(data_config),
        "variant": opened.variant,
        "preset": preset,
        "seed": seed,
        "train": options,
        "evaluation": configs.to_dict(protocol),
    }
    settings = json.loads(to_text(settings))
    folder = processes.agree(_folder(out, opened.name))
    done = processes.by_main(lambda: _finished(folder, settings))
    _save(folder, settings, list(done.values()))
    tell = _Teller(quiet or not processes.main())
    rows: list[Row] = []
    for place, model in enumerate(models, start=1):
        if model in done:
            tell.say(f"{model}: finished before, not trained again")
            rows.append(done[model])
            continue
        tell.say(f"{model} ({place} of {len(models)}): training, {_length(options)}")
        name, _, own = model.partition(":")
        where = folder / model.replace(":", "-")
        config = {"data": dict(data_options or {})}
        began = time.monotonic()
        try:
            _reset_peak()
            if processes.agree((where / "config.yaml").exists()):
                tell.say(f"{model}: going on with {where}")
                # The same time is promised, not the same bits: another thread count only warns.
                run = train(resume=where, resume_anyway=True, quiet=quiet)
            else:
                chosen = own or preset
                run = train(
                    name, data, preset=chosen, config=config, seed=seed, out=where,
                    quiet=quiet, opened=opened, **options,
                )  # fmt: skip
            row = processes.agree(_trained(model, run, time.monotonic() - began))
            if row is not None:
                tell.say(f"{model}: drawing samples and judging them")
                with tell.judging(model) as progress:
                    numbers = evaluate(run.path, protocol, progress=progress).numbers
                row = dataclasses.replace(row, numbers=numbers)
        except PoiesisError as error:
            tell.say(f"{model} failed: {error}")
            row = Row(model=model, run=str(where), failure=str(error))
        if row is None:
            raise RunError(f"{model} was stopped; to go on, compare again with the out {folder}")
        rows.append(row)
        _save(folder, settings, [*rows, *(r for m, r in done.items() if m not in models)])
    rows += [row for name, row in done.items() if name not in models]
    tell.say("writing the report")
    return _conclude(folder, settings, rows, opened)


def _conclude(
    folder: Path, settings: dict[str, Any], rows: Sequence[Row], opened: DataSet
) -> Comparison:
    ordered = _ordered(rows)
    _save(folder, settings, ordered)
    report = folder / "report.html"
    if not processes.main():
        return Comparison(path=folder, report=report, settings=settings, rows=tuple(ordered))
    lead = f"{len(rows)} models, {_length(settings['train'])}, seed {settings['seed']}"
    comparison_page(
        [(row.model, row.run) for row in ordered if not row.failure],
        _leaderboard(ordered),
        title=_title(settings),
        lead=f"{lead} · {opened.variant}",
        out=report,
    )
    return Comparison(path=folder, report=report, settings=settings, rows=tuple(ordered))


def _folder(out: str | Path | None, data: str) -> Path:
    if out is not None:
        return Path(out)
    stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    return Path("runs") / f"{Path(data).stem or 'data'}-comparison" / stamp


def _finished(folder: Path, settings: dict[str, Any]) -> dict[str, Row]:
    """Return the rows of models that are done; raises RunError if the settings were others."""
    stored = Run(folder).read_json(FILE)
    if stored is None:
        return {}
    before, now = dict(configs.flatten(stored["settings"])), dict(configs.flatten(settings))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise RunError(
                f"{str(folder)!r} holds a comparison with {key} = {before.get(key)}, not "
                f"{now.get(key)}: choose another out, or the same settings to go on"
            )
    rows = [Row.from_json(row) for row in stored["rows"]]
    return {row.model: row for row in rows if not row.failure}


def _save(folder: Path, settings: dict[str, Any], rows: Sequence[Row]) -> None:
    if not processes.main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    value = {"settings": settings, "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomic(folder / FILE, to_text(value))


def _trained(model: str, run: Run, seconds: float) -> Row | None:
    """Return the row of a run without numbers; None if it was stopped before its end."""
    steps = run.checkpoint().step
    if steps < sum(run.read_json("schedule.json")["stage_steps"]):
        return None
    trained = load(run.path)
    # A resumed run counts what it did before as well.
    logged = [line["train/seconds"] for line in run.metrics() if line.get("train/seconds")]
    return Row(
        model=model,
        run=str(run.path),
        steps=steps,
        seconds=max([seconds, *logged[-1:]]),
        parameters=sum(p.numel() for p in trained.model.parameters()),
        peak_memory=_peak(),
    )


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        # 5 resets the peak of resident memory (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


# -- the leaderboard -------------------------------------------------------------------------------


def _best(rows: Sequence[Row], name: str) -> set[str]:
    have = [(row.model, n) for row in rows if (n := row.number(name)) is not None]
    if not have:
        raise ConfigError(f"no model of this comparison has the number {name!r}")
    check_same(*(number for _, number in have))
    return {
        model
        for model, number in have
        if all(compare_numbers(number, other) != "second" for _, other in have)
    }


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by the first number that ranks all of them; failures last."""
    well, failed = [r for r in rows if not r.failure], [r for r in rows if r.failure]
    for name in _RANKED_BY:
        numbers = [n for row in well if (n := row.number(name)) is not None]
        if not numbers or len(numbers) < len(well):
            continue
        try:
            check_same(*numbers)
        except PassportMismatch:
            continue
        values = {row.model: number.value for row, number in zip(well, numbers, strict=True)}
        return sorted(well, key=lambda row: values[row.model]) + failed
    return [*well, *failed]


def _leaderboard(rows: Sequence[Row]) -> Leaderboard:
    """Return the table: numbers of any model, then what they cost."""
    known: dict[str, Number] = {}
    for row in rows:
        known.update({n.name: n for n in row.numbers})
    better = {True: "higher is better", False: "lower is better", None: ""}
    columns = [("model", "")]
    notes, best = [], {}
    for name, number in known.items():
        columns.append((NAMES.get(name, name.replace("_", " ")), better[number.higher_is_better]))
        try:
            best[name] = _best(rows, name) if number.higher_is_better is not None else set()
        except PassportMismatch as error:
            best[name] = set()
            why = str(error).partition(": evaluate")[0]
            notes.append(f"{NAMES.get(name, name)} is not ranked: {why}.")
    taken = {row.model: _evaluations(row) for row in rows}
    if any(taken.values()):
        columns.append(("evaluations a sample", ""))
    columns += [("steps", ""), ("trained", ""), ("parameters", ""), ("peak memory", "")]
    several = sum(not row.failure for row in rows) > 1
    if several and any(best.values()):
        notes.insert(0, "Marked: no other model is better beyond doubt (95% intervals apart).")
    table = []
    for row in rows:
        if row.failure:
            table.append([Cell(text=row.model), Cell(text=row.failure)])
            continue
        cells = [Cell(text=row.model)]
        for name in known:
            number = row.number(name)
            if number is None:
                cells.append(Cell(text="–"))
                continue
            value, interval = short(number)
            note = ", ".join(part for part in (interval, number.unit) if part)
            cells.append(Cell(text=value, note=note, best=several and row.model in best[name]))
        if any(taken.values()):
            each = taken[row.model]
            cells.append(Cell(text="–" if each is None else f"{each:.4g}"))
        memory = "–" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.0f} MiB"
        weights = f"{4 * row.parameters / 2**20:.1f} MiB"
        cells += [
            Cell(text=f"{row.steps:,}"),
            Cell(text=duration(row.seconds)),
            Cell(text=f"{row.parameters:,}", note=weights),
            Cell(text=memory),
        ]
        table.append(cells)
    return Leaderboard(columns=columns, rows=table, notes=notes)


def _evaluations(row: Row) -> float | None:
    """Return how often the network was asked for each sample that was judged."""
    return next((n.evaluations for n in row.numbers if n.passport.n_generated), None)


def _title(settings: Mapping[str, Any]) -> str:
    return f"Comparison on {settings['data']['source']}"


def _length(options: Mapping[str, Any]) -> str:
    if "budget" in options:
        return f"{duration(configs.parse_duration(options['budget']))} each"
    kind = "steps" if "steps" in options else "epochs"
    return f"{options[kind]:,} {kind} each"


class _Teller:
    """Says what happens and shows a bar while a model is judged; plain lines off a terminal."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr)
        self._quiet = quiet

    def say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def judging(self, model: str) -> _Judging:
        return _Judging(self._console, model, show=not self._quiet and self._console.is_terminal)


class _Judging:
    """A bar over samples and features, then a spinner over distances and likelihood."""

    def __init__(self, console: Any, model: str, *, show: bool) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not show, transient=True)
        self._model = model
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Judging:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, count: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(f"{self._model}: {what}", total=total)
        task = self._tasks[what]
        self._progress.update(task, advance=count)
        if what == "features" and self._progress._tasks[task].finished:
            self._progress.add_task(f"{self._model}: distances, likelihood", total=None)
