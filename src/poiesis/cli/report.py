"""`poiesis report`: one self-contained HTML file about a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from poiesis.cli.options import parse
from poiesis.config import check

__all__ = ["ReportArgs", "run"]

_EXAMPLES = (
    "poiesis report runs/first",
    "poiesis report runs/first -o first.html --samples 100",
)


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where to write the page (default: RUN/report.html)."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Samples to show."""
    evaluate: bool = False
    """Judge the run first, if that was not done."""

    def __post_init__(self) -> None:
        check("--samples", self.samples, low=1)


def run(args: list[str]) -> int:
    """Write the report and print its path."""
    parsed = parse(
        ReportArgs,
        args,
        prog="poiesis report",
        description="Write a run's report: sample grids over time, nearest training neighbours, "
        "curves, numbers, configuration and environment in one HTML file.",
        examples=_EXAMPLES,
    )
    from poiesis.reporting.page import report

    print(report(parsed.run, out=parsed.out, samples=parsed.samples, evaluate=parsed.evaluate))
    return 0
