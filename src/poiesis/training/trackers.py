"""Where training's numbers go: metrics.jsonl, the terminal, TensorBoard, wandb, mlflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from poiesis.config import flatten
from poiesis.errors import MissingDependency
from poiesis.runs import Run

__all__ = ["Bar", "Tracker", "open_trackers"]


class Tracker(Protocol):
    """Takes scalars by name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note values of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class _TensorBoard:
    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise MissingDependency(
                "tensorboard", "trackers", "--train.track tensorboard"
            ) from None
        self._writer = SummaryWriter(str(run.path / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingDependency("wandb", "wandb", "--train.track wandb") from None
        self._run = wandb.init(
            project="poiesis",
            name=run.path.name,
            dir=str(run.path),
            config=dict(flatten(config)),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingDependency("mlflow", "mlflow", "--train.track mlflow") from None
        self._mlflow = mlflow
        mlflow.set_experiment("poiesis")
        mlflow.start_run(run_name=run.path.name)
        mlflow.log_params({k: str(v)[:250] for k, v in flatten(config)})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}


def open_trackers(names: tuple[str, ...], run: Run, config: Mapping[str, Any]) -> list[Tracker]:
    """Open the named trackers; raises MissingDependency with the install line."""
    return [_KINDS[name](run, config) for name in names]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate", 0.0)
        return Text(f"{rate:,.0f} {task.fields.get('unit', 'img')}/s" if rate else "")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            return Text("")
        minutes, seconds = divmod(int(left), 60)
        return Text(f"{minutes}:{seconds:02d} left")


class Bar:
    """A progress bar with losses, rate and time left; plain lines where there is no terminal."""

    LINES_EVERY = 15.0
    """Seconds between plain lines."""

    def __init__(self, title: str, total: int, *, unit: str = "img", quiet: bool = False) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        self._progress: Progress | None = None
        self._last_line = time.monotonic()
        if not quiet and self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                _Rate(),
                TimeElapsedColumn(),
                _Left(),
                TextColumn("{task.fields[losses]}", style="dim"),
                console=self._console,
            )
            self._task = self._progress.add_task(title, total=total, losses="", unit=unit)
            self._progress.start()

    def update(
        self, step: int, rate: float, left: float | None, losses: Mapping[str, float]
    ) -> None:
        """Show where training stands. rate: samples or tokens a second. left: seconds."""
        if self._quiet:
            return
        shown = list(losses.items())[:4]
        text = "  ".join(f"{n} {v:.4g}" for n, v in shown)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, rate=rate, left=left, losses=text)
        elif time.monotonic() - self._last_line > self.LINES_EVERY or step >= self._total:
            self._last_line = time.monotonic()
            minutes, seconds = divmod(int(left or 0), 60)
            self.say(
                f"{self._title}: step {step}/{self._total} ({step / self._total:.0%}), "
                f"{rate:,.0f} {self._unit}/s, {minutes}:{seconds:02d} left, {text}"
            )

    def total(self, steps: int) -> None:
        """Take note of another length."""
        self._total = steps
        if self._progress is not None:
            self._progress.update(self._task, total=steps)

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if not self._quiet:
            self._console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()
