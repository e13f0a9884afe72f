"""`poiesis compare`: several models under one equal budget, and the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from poiesis import registry
from poiesis.cli.options import parse
from poiesis.cli.output import print_json, stdout_for_json
from poiesis.config import check, parse_duration
from poiesis.errors import ConfigError

__all__ = ["CompareArgs", "run"]

_EXAMPLES = (
    "poiesis compare vae dcgan ddpm --data digits --budget 1m",
    "poiesis compare vae gan --data mnist --budget 5m --seed 1 --out runs/vae-or-gan",
)


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Options of the verb."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """Two or more model names; poiesis models lists them."""
    data: str = "digits"
    """Data set by name or path."""
    budget: str = "5m"
    """Wall-clock time of training for each, e.g. 90s, 5m or 1h30m."""
    preset: str | None = None
    """Named settings, which each of the models must have (default: each model's own)."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the runs and the leaderboard."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        check("--seed", self.seed, low=0)
        parse_duration(self.budget)


def run(args: list[str]) -> int:
    """Compare and print the leaderboard or the JSON document."""
    parsed = parse(
        CompareArgs,
        args,
        prog="poiesis compare",
        description="Train models one after another under equal time, judge each by the same "
        "protocol and write the leaderboard: quality, likelihood, speed, memory, parameters.",
        examples=_EXAMPLES,
    )
    for name in parsed.models:
        registry.entry(name)
    if len(parsed.models) < 2:
        raise ConfigError(f"poiesis compare needs two models or more; e.g. {_EXAMPLES[0]}")
    from poiesis.comparison import compare

    with stdout_for_json(parsed.json):
        result = compare(
            list(parsed.models),
            parsed.data,
            budget=parsed.budget,
            seed=parsed.seed,
            out=parsed.out,
            preset=parsed.preset,
            quiet=parsed.quiet,
        )
    if parsed.json:
        print_json(result.to_json())
        return 0
    from rich.console import Console

    Console().print(result.table())
    print(f"folder: {result.path}")
    print(f"report: {result.report}")
    return 0
