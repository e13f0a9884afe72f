"""What verbs print: JSON documents, durations, sizes, a progress bar on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["human_bytes", "human_time", "print_json", "progress", "stdout_for_json"]


def print_json(value: Any) -> None:
    """Print one JSON document; NaN and infinity become null."""
    from poiesis.runs import dump_json

    print(dump_json(value))


@contextlib.contextmanager
def stdout_for_json(wanted: bool) -> Iterator[None]:
    """Send what the work prints to stderr if stdout is to hold one JSON document alone."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def human_time(seconds: float) -> str:
    """Return e.g. "0.8 s", "42 s", "5 min 3 s" or "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def human_bytes(count: float) -> str:
    """Return e.g. "12.3 MB", in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr; the function takes (what is done, just finished, in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    tasks: dict[str, Any] = {}

    def advance(what: str, count: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.advance(tasks[what], count)

    with bar:
        yield advance
