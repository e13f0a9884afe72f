"""`poiesis data`: what a data set holds, or which named sets are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from poiesis import config as configs
from poiesis.cli.options import Nested, options, parse, scan
from poiesis.cli.output import print_json
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError, RunError

if TYPE_CHECKING:
    from poiesis.data.dataset import DataSet

__all__ = ["ALIASES", "DataArgs", "run"]

ALIASES = {"--skip-bad": "--data.skip-bad"}
_EXAMPLES = (
    "poiesis data   (which named sets are here)",
    "poiesis data mnist --preview mnist.png",
    "poiesis data weizmann64 --data.frames 16 --preview clips.gif",
    "poiesis data table.csv --data.label species --preview table.png",
    "poiesis data photos/ --data.resize 64 --data.skip-bad --json",
)


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """Options of the verb."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """Name or path of a data set; without it the named sets are listed."""
    preview: str | None = None
    """Write a picture of the first training samples to this PNG file; of video, strips of frames
    of clips from all of the training part, or what moves if it is a .gif file."""
    json: bool = False
    """Print one JSON document."""
    data: Nested[DataConfig]


def run(args: list[str]) -> int:
    """Describe one data set, or list the named ones."""
    positionals, _ = scan(args, options(DataArgs), prog="poiesis data", aliases=ALIASES)
    default = DataConfig(source=positionals[0]) if positionals else DataConfig()
    parsed = parse(
        DataArgs,
        args,
        prog="poiesis data",
        description="Describe a data set: its exact variant, shape, splits and classes.",
        examples=_EXAMPLES,
        default=DataArgs(data=default),
        aliases=ALIASES,
    )
    if parsed.name is None:
        if parsed.preview:
            raise ConfigError("--preview needs a data set: poiesis data digits --preview a.png")
        return _list(parsed.json)
    from poiesis.data import open_data

    found = open_data(parsed.name, parsed.data)
    described = _describe(found)
    if parsed.preview:
        _write_preview(found, parsed.preview)
        described["preview"] = parsed.preview
    if parsed.json:
        print_json(described)
    else:
        _print(described)
    return 0


def _list(as_json: bool) -> int:
    from poiesis.data.sources import BUILT_IN, NAMED, find, roots

    places: dict[str, str | None] = dict.fromkeys(BUILT_IN, "built in")
    for name in NAMED:
        found = find(name)
        places[name] = None if found is None else str(found)
    if as_json:
        print_json({"looked_in": [str(root) for root in roots()], "sets": places})
        return 0
    width = max(map(len, places))
    for name, place in places.items():
        print(f"{name:{width}}  {place or 'not here'}")
    print(f"\nlooked in: {', '.join(map(str, roots()))} ($POIESIS_DATA comes first)")
    print("Any folder or .zip of images or clips, text, table of numbers or folder of WAV files")
    print("can be named by its path; hf:OWNER/NAME too.")
    return 0


def _describe(found: DataSet) -> dict[str, Any]:
    from poiesis.spec import Captions, Picture, to_json

    classes, captions = None, None
    if isinstance(found.condition, Captions):
        captions = {
            "words": list(found.condition.words),
            "length": found.condition.length,
            "examples": list(found.condition.examples),
        }
    elif found.condition is not None and not isinstance(found.condition, Picture):
        names = found.condition.names or tuple(map(str, range(found.condition.count)))
        classes = {part: _count(split, names) for part, split in found.splits.items()}
    return {
        "name": found.name,
        "variant": found.variant,
        "spec": to_json(found.spec),
        "shape": str(found.spec),
        "splits": {part: len(split) for part, split in found.splits.items()},
        "classes": classes,
        "captions": captions,
        "skipped": found.skipped,
        "notes": found.notes,
    }


def _count(split: Any, names: tuple[str, ...]) -> dict[str, int] | None:
    """Return class name → how many of the split's rows are of it."""
    import torch

    labels = getattr(split, "y", None)
    if labels is None:
        return None
    if labels.dim() == 2:  # attributes
        counts = labels.sum(0).long().tolist()
    else:
        counts = torch.bincount(labels, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _print(described: dict[str, Any]) -> None:
    print(f"variant  {described['variant']}")
    print(f"shape    {described['shape']}")
    for part, count in described["splits"].items():
        print(f"{part:10} {count:,}")
    for part, counts in (described["classes"] or {}).items():
        if counts is not None:
            shown = [f"{name} {count:,}" for name, count in counts.items()]
            more = f", … ({len(shown)} classes)" if len(shown) > 20 else ""
            print(f"classes of {part}: {', '.join(shown[:20])}{more}")
    if described["captions"] is not None:
        words, examples = described["captions"]["words"], described["captions"]["examples"]
        more = f", … ({len(words):,} words)" if len(words) > 40 else ""
        print(f"captions of up to {described['captions']['length']} words, such as:")
        print("\n".join(f"  {text}" for text in examples[:5]))
        print(f"words: {', '.join(words[:40])}{more}")
    for key, value in configs.flatten(described["notes"]):
        print(f"{key}: {value}")
    for line in described["skipped"]:
        print(f"skipped {line}")
    if "preview" in described:
        print(f"preview: {described['preview']}")


def _write_preview(found: DataSet, path: str) -> None:
    import torch

    from poiesis.data.codecs import VideoCodec
    from poiesis.spec import Picture, Tokens

    split, columns = found.splits["train"], None
    if isinstance(found.spec, Tokens) and found.spec.stream:
        rows = [split.tokens[:2000].long()]
    else:
        count = min(found.codec.shown, len(split))
        # The first windows of video are of one clip.
        moving = isinstance(found.codec, VideoCodec)
        step = len(split) // count if moving else 1
        x, y = split.fetch(torch.arange(count) * step)
        rows = list(x)
        if isinstance(found.condition, Picture) and y is not None:
            # Each picture and what is to be made of it.
            rows, columns = [row for pair in zip(y, x, strict=True) for row in pair], 8
    raws = [found.codec.decode(row) for row in rows]
    try:
        if isinstance(found.codec, VideoCodec) and path.lower().endswith(".gif"):
            Path(path).write_bytes(found.codec.animate(raws))
            return
        found.codec.preview(raws, columns).save(path)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"can't write the preview {path!r}: {reason}; name a .png file") from None
