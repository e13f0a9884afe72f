"""`poiesis evaluate`: a trained run's numbers, each with what it was measured on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["EvaluateArgs", "run"]

_EXAMPLES = (
    "poiesis evaluate runs/first",
    "poiesis evaluate runs/first -n 2000 --extractor inception",
    "poiesis evaluate runs/first --json > numbers.json",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Options of the verb; those of EvaluationConfig are repeated so as to need no torch here."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    extractor: str = "auto"
    """Feature extractor: inception, digits, mnist, fashion-mnist, cifar10-jpeg, random or a
    weights file; auto is the data set's own, or random."""
    samples: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Samples to generate; none is as many as there are real ones, at most 5,000 (texts: 32)."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Real images to compare with; auto is test, or train where test has under 1,000."""
    likelihood_rows: int = 1000
    """Held-out samples (windows of a text) whose likelihood is measured; 0 leaves it out."""
    likelihood_samples: int | None = None
    """Importance samples or bound terms per sample; none is the model's default."""
    seed: int = 0
    """Seed of the samples, of the choice of real images, and of the intervals."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Evaluate and print the table or the JSON document."""
    parsed = parse(
        EvaluateArgs,
        args,
        prog="poiesis evaluate",
        description="Judge a trained run: distances to real data, likelihood, speed. The result "
        "is also written to RUN/evaluation.json.",
        examples=_EXAMPLES,
    )
    import torch

    from poiesis.evaluation.protocol import EvaluationConfig, evaluate

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
