"""`poiesis evaluate`: a trained run's numbers, each with what it was measured on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["ALIASES", "EvaluateArgs", "run"]

ALIASES = {"-n": "--samples"}
"""Short spellings of options."""

_EXAMPLES = (
    "poiesis evaluate runs/first",
    "poiesis evaluate runs/first -n 2000 --extractor inception",
    "poiesis evaluate runs/first --json > numbers.json",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Options of the verb itself; those of EvaluationConfig stand beside them."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""


def run(args: list[str]) -> int:
    """Evaluate and print the table or the JSON document."""
    import torch

    from poiesis.evaluation.protocol import EvaluationConfig, evaluate

    arguments: Any = dataclasses.make_dataclass(
        "Arguments", [], bases=(EvaluateArgs, EvaluationConfig), frozen=True, kw_only=True
    )
    parsed = parse(
        arguments,
        args,
        prog="poiesis evaluate",
        description="Judge a trained run: distances to real data, likelihood, speed. The result "
        "is also written to RUN/evaluation.json. -n is short for --samples.",
        examples=_EXAMPLES,
        aliases=ALIASES,
    )
    check("--threads", parsed.threads, low=1)
    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    names = [f.name for f in dataclasses.fields(EvaluationConfig)]
    config = EvaluationConfig(**{name: getattr(parsed, name) for name in names})
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        result = evaluate(parsed.run, config, progress=advance)
    if parsed.json:
        print_json(result.to_json())
        return 0
    from rich.console import Console

    Console().print(result.table())
    return 0
