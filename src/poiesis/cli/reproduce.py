"""`poiesis reproduce`: make a generated file again from its recipe, and compare the bytes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.config import check
from poiesis.errors import ConfigError, DataError

__all__ = ["ReproduceArgs", "run"]

_EXAMPLES = (
    "poiesis reproduce samples/00003.png",
    "poiesis reproduce samples/00003.png -o again.png --run archive/first",
)


@dataclass(frozen=True, kw_only=True)
class ReproduceArgs:
    """Options of the verb."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """A file that poiesis sample wrote."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Keep the file made again here (default: it is compared and thrown away)."""
    run: str | None = None
    """Where the run lies now, if it moved."""
    threads: int | None = None
    """Processor threads (default: as many as the recipe says)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Print whether the bytes are the same; 0 if they are, else 1."""
    parsed = parse(
        ReproduceArgs,
        args,
        prog="poiesis reproduce",
        description="Make a generated file again from the recipe inside it and say whether the "
        "bytes are the same. Exit code 0 if so, else 1.",
        examples=_EXAMPLES,
    )
    source = Path(parsed.file)
    if not source.is_file():
        raise DataError(f"there is no file {parsed.file!r}; give one that poiesis sample wrote")
    if parsed.out is not None and Path(parsed.out).resolve() == source.resolve():
        raise ConfigError(f"-o {parsed.out} is the file itself; choose another name")
    import torch

    from poiesis.data.provenance import read_recipe
    from poiesis.models.samples import reproduce

    threads = parsed.threads or read_recipe(source).get("threads")
    if isinstance(threads, int) and 1 <= threads <= 1024:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(parsed.out) if parsed.out else Path(folder) / source.name
        made = reproduce(source, target, run=parsed.run, device=parsed.device)
        same = made.read_bytes() == source.read_bytes()
    kept = f"; kept as {parsed.out}" if parsed.out else ""
    print(f"{parsed.file}: {'identical' if same else 'DIFFERENT'} bytes{kept}")
    return 0 if same else 1
