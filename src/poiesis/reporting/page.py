"""Reports: one HTML file that holds everything, asks no server for anything, and opens anywhere.

`report` is about one run, `comparison_page` about several side by side. Pictures are embedded,
curves are SVG, there is no script; light and dark follow the reader's system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poiesis import __version__
from poiesis.config import check
from poiesis.errors import RunError
from poiesis.reporting.sections import RunSection, gather
from poiesis.runs import Run, write_atomic

__all__ = ["Cell", "Leaderboard", "comparison_page", "report"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a leaderboard."""

    text: str
    note: str = ""
    """Small print under the text, e.g. the interval."""
    best: bool = False
    """Whether no other row is better beyond doubt."""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Columns with what is better in them, and one row of cells per model."""

    columns: Sequence[tuple[str, str]]
    """(name, "higher is better", "lower is better" or "")."""
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default=())


def report(
    run: str | Path,
    *,
    out: str | Path | None = None,
    samples: int = 64,
    evaluate: bool = False,
) -> Path:
    """Write the report of a run and return its path.

    out: default report.html in the run. samples: pictures to draw (texts: at most 8). evaluate:
    judge the run first if that was not done. Raises RunError without a trained model in `run`.
    """
    from poiesis.evaluation.protocol import evaluate as judge
    from poiesis.evaluation.protocol import load_evaluation

    check("samples", samples, low=1)
    folder = Run.open(run)
    if evaluate and load_evaluation(folder.path) is None:
        judge(folder.path)
    section = gather(folder.path, samples=samples)
    path = folder.path / "report.html" if out is None else Path(out)
    title = section.label
    return _write(path, title=title, lead=section.summary, runs=[section], leaderboard=None)


def comparison_page(
    entries: Sequence[tuple[str, str | Path]],
    leaderboard: Leaderboard,
    *,
    title: str,
    lead: str,
    out: str | Path,
    samples: int = 36,
) -> Path:
    """Write one page about several runs, the leaderboard on top, and return its path.

    entries: (label, run folder) of each model that was trained. lead: the line under the title.
    """
    check("samples", samples, low=1)
    runs = [gather(path, samples=samples, label=label) for label, path in entries]
    return _write(Path(out), title=title, lead=lead, runs=runs, leaderboard=leaderboard)


def _write(path: Path, *, title: str, lead: str, runs: Sequence[RunSection], **more: Any) -> Path:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("template.html").render(
        title=title,
        lead=lead,
        runs=runs,
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        version=__version__,
        **more,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write {str(path)!r}: {error.strerror}") from None
    write_atomic(path, html)
    return path
