"""`poiesis reduce`: data to the few numbers of a model's code, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["ReduceArgs", "run"]

_EXAMPLES = (
    "poiesis reduce runs/first -o codes.csv",
    "poiesis reduce runs/first pictures/ -o codes.npz",
    "poiesis reduce runs/first mnist --split train --limit 5000 --json",
)


@dataclass(frozen=True, kw_only=True)
class ReduceArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    input: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="INPUT")] = None
    """Image or WAV file, folder of these, .zip of images, table, or name of a data set (default:
    the run's own data)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """File for the codes: .csv, .npz or .parquet."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int | None = None
    """At most so many samples."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 256
    """Samples encoded at once: a matter of speed and memory."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--limit", self.limit, low=1)
        check("--batch-size", self.batch_size, low=1)
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Encode, write the table, print what the codes are worth."""
    parsed = parse(
        ReduceArgs,
        args,
        prog="poiesis reduce",
        description="Reduce data to a model's codes. With known classes it also says how well a "
        "linear classifier reads them off the codes (linear_probe) and how pure the clusters of "
        "k-means are; hoyer_sparsity is 0 for dense and 1 for one-hot codes; active_units are "
        "dimensions that vary.",
        examples=_EXAMPLES,
    )
    import torch

    from poiesis.apply.reduce import reduce

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        found = reduce(
            parsed.run,
            parsed.input or "",
            out=parsed.out,
            split=parsed.split,
            limit=parsed.limit,
            checkpoint=parsed.checkpoint,
            device=parsed.device,
            batch_size=parsed.batch_size,
            progress=advance,
        )
    if parsed.json:
        numbers = {"samples": len(found.codes), **found.numbers}
        print_json({**numbers, "path": None if found.path is None else str(found.path)})
        return 0
    print(f"{len(found.codes)} samples ({found.inputs.where})")
    for name, value in found.numbers.items():
        print(f"  {name:16} {value:.4g}")
    if found.path is not None:
        print(f"codes: {found.path}")
    return 0
