"""`poiesis compare`: several models under one equal budget, and the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from poiesis import registry
from poiesis.cli.options import Nested, given, options, parse, scan
from poiesis.cli.output import print_json, stdout_for_json
from poiesis.config import check, parse_duration
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError
from poiesis.training.config import TrainConfig

__all__ = ["ALIASES", "CompareArgs", "run"]

ALIASES = {"--data": "--data.source", "--skip-bad": "--data.skip-bad"}
"""Short spellings of options."""

_EXAMPLES = (
    "poiesis compare vae dcgan ddpm --data digits --budget 1m",
    "poiesis compare vae:tutorial gan:tutorial --data mnist --budget 5m --out runs/tutorials",
)


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Options of the verb."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """Model names, each with a preset if wanted (vae:tutorial); poiesis models lists them."""
    budget: str | None = None
    """Wall-clock time of training for each (default: 5m), or give --train.steps or --train.epochs
    instead."""
    preset: str | None = None
    """Named settings, which each of the models must have (default: each model's own)."""
    samples: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Samples to judge each model on (default: as many as there are real ones)."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the runs and the leaderboard; a stopped comparison goes on there."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bars."""
    data: Nested[DataConfig] = field(default_factory=DataConfig)
    train: Nested[TrainConfig] = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check("--seed", self.seed, low=0)
        check("--samples", self.samples, low=1)
        if self.budget is not None:
            parse_duration(self.budget)
            if (self.train.steps, self.train.epochs, self.train.budget) != (None, None, None):
                raise ConfigError("choose one of --budget, --train.steps and --train.epochs")


def run(args: list[str]) -> int:
    """Compare and print the leaderboard or the JSON document; 1 if a model failed."""
    parsed = parse(
        CompareArgs,
        args,
        prog="poiesis compare",
        description="Train models one after another under equal time, judge each by the same "
        "protocol and write the leaderboard: quality, likelihood, speed, memory, parameters.",
        examples=_EXAMPLES,
        aliases=ALIASES,
    )
    if not parsed.models:
        raise ConfigError(f"poiesis compare needs models; e.g. {_EXAMPLES[0]}")
    for name in parsed.models:
        registry.entry(name.partition(":")[0])
    known = options(CompareArgs)
    _, values = scan(args, known, prog="poiesis compare", aliases=ALIASES)
    chosen = {
        group: {f: getattr(getattr(parsed, group), f) for f in given(values, known, group)}
        for group in ("data", "train")
    }
    chosen["data"].pop("source", None)
    budget = parsed.budget or chosen["train"].pop("budget", None)
    from poiesis.comparison import compare

    with stdout_for_json(parsed.json):
        result = compare(
            list(parsed.models),
            parsed.data.source,
            budget=budget,
            seed=parsed.seed,
            out=parsed.out,
            samples=parsed.samples,
            preset=parsed.preset,
            data_options=chosen["data"],
            quiet=parsed.quiet,
            **chosen["train"],
        )
    if parsed.json:
        print_json(result.to_json())
    else:
        from rich.console import Console

        Console().print(result.table())
        print(f"folder: {result.path}")
        print(f"report: {result.report}")
    return 1 if any(row.failure for row in result.rows) else 0
