"""Options of a verb together with the sampling options of the run's own model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from poiesis.cli.options import Nested, given, options, parse, scan
from poiesis.config import from_dict

__all__ = ["parse_with_sampling"]


def parse_with_sampling(
    cls: type, args: list[str], *, verb: str, about: str, here: str, examples: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """Parse a verb whose first argument is a run; return its options and the sampling ones given.

    about: description without a run. here: with one, where {run} and {name} stand for the run's
    folder and model. Errors and --help as in `parse`.
    """
    prog = f"poiesis {verb}"
    positionals, _ = scan(args, options(cls), prog=prog, ignore="--sampling.")
    if not positionals:
        parse(cls, args, prog=prog, description=about, examples=examples)
    from poiesis import registry
    from poiesis.runs import Run

    folder = Run.open(positionals[0])
    name = folder.config().get("name", "")
    sampling = registry.model_class(name).Sampling
    own = from_dict(sampling, folder.read_json("sampling.json", {}), path="sampling.")
    arguments: Any = dataclasses.make_dataclass(
        "Arguments",
        [("sampling", Nested[sampling], dataclasses.field(default_factory=lambda: own))],  # type: ignore[valid-type]
        bases=(cls,),
        frozen=True,
        kw_only=True,
    )
    description = here.format(run=folder.path, name=name)
    parsed = parse(arguments, args, prog=prog, description=description, examples=examples)
    known = options(arguments)
    chosen = given(scan(args, known, prog=prog)[1], known, "sampling")
    return parsed, {field: getattr(parsed.sampling, field) for field in chosen}
