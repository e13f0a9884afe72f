"""`poiesis decompress`: the images of a file that `poiesis compress` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json

__all__ = ["DecompressArgs", "run"]

_EXAMPLES = (
    "poiesis decompress pictures.psis -o pictures",
    "poiesis decompress pictures.psis -o pictures --run archive/first",
)


@dataclass(frozen=True, kw_only=True)
class DecompressArgs:
    """Options of the verb."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """A .psis file."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the images, as PNG under their own names (default: only verify the file)."""
    run: str | None = None
    """Where the run lies now, if it moved."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""


def run(args: list[str]) -> int:
    """Decode, verify, write the images."""
    parsed = parse(
        DecompressArgs,
        args,
        prog="poiesis decompress",
        description="Write the images of a .psis file, which must be the very levels that were "
        "compressed. Computed with as many threads as when it was made. A file that is damaged, "
        "of another model, or of a machine whose arithmetic differs is refused, and nothing is "
        "written.",
        examples=_EXAMPLES,
    )
    from poiesis.apply.compress import decompress

    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        found = decompress(parsed.file, out=parsed.out, run=parsed.run, progress=advance)
    if parsed.json:
        print_json({"samples": len(found.rows), **found.numbers, "out": parsed.out})
        return 0
    print(f"{len(found.rows)} images, verified ({parsed.file})")
    print(f"  speed     {found.numbers['decode_per_second']:.0f} images/s")
    if found.paths:
        print(f"decompressed: {parsed.out}")
    return 0
