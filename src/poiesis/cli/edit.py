"""`poiesis edit` and `poiesis inpaint`: given pictures made anew, as variants or in parts."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.cli.sampling import parse_with_sampling
from poiesis.config import check
from poiesis.sampling.counting import say

__all__ = ["EditArgs", "InpaintArgs", "PictureArgs", "inpaint", "run", "tell", "work"]

_EXAMPLES = (
    "poiesis edit runs/digits pictures/ --strength 0.4 -o edited",
    "poiesis edit runs/digits drawing.png --class 3 --variants 4 -o edited",
    "poiesis edit runs/digits --limit 10 --sampling.guidance 2 -o edited",
)
_INPAINT = (
    "poiesis inpaint runs/digits --mask right --limit 10 -o filled",
    "poiesis inpaint runs/faces photo.png --mask hole.png --variants 4 -o filled",
    "poiesis inpaint runs/digits broken/ --mask hole.png --resamples 10 -o filled",
)


@dataclass(frozen=True, kw_only=True)
class PictureArgs:
    """Options of all verbs that make pictures of pictures."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    input: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="INPUT")] = None
    """Image file, folder or .zip of images, or name of a data set (default: the run's own)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the pictures, by the same names, and a sheet before-after.png."""
    variants: int = 1
    """How many of each picture."""
    seed: int = 0
    """Seed of the noise; a picture's depends on the seed and its place alone."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int | None = None
    """At most so many pictures."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 64
    """Pictures made at once: a matter of speed and memory."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--variants", self.variants, low=1)
        check("--limit", self.limit, low=1)
        check("--seed", self.seed, low=0)
        check("--batch-size", self.batch_size, low=1)
        check("--threads", self.threads, low=1)


@dataclass(frozen=True, kw_only=True)
class _Args(PictureArgs):
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Class by name or number to make them of (default: their own, where it is known)."""
    prompt: str | None = None
    """Caption of what to make of them, for a model that learned captions."""


@dataclass(frozen=True, kw_only=True)
class EditArgs(_Args):
    """Options of the verb edit."""

    strength: float = 0.5
    """How much is made anew, up to 1: at 0.2 details, at 0.8 little but the layout stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("--strength", self.strength, low=0, high=1, open_low=True)


@dataclass(frozen=True, kw_only=True)
class InpaintArgs(_Args):
    """Options of the verb inpaint."""

    mask: str = "centre"
    """What to fill in: left, right, top, bottom or centre, or a picture of the same size, white
    where the pictures are to be filled in."""
    resamples: int = 5
    """How often each step is repeated so that old and new fit; more takes longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("--resamples", self.resamples, low=1, high=1000)


def run(args: list[str]) -> int:
    """Make variants, write the files."""
    parsed, chosen = parse_with_sampling(
        EditArgs,
        args,
        verb="edit",
        about="Make variants of pictures with a trained diffusion model: noise is added and taken "
        "away again (SDEdit). poiesis edit RUN --help shows the sampling options of the run's "
        "model too.",
        here="Make variants of pictures with {run}, a {name}.",
        examples=_EXAMPLES,
    )
    asked = {"label": parsed.label, "prompt": parsed.prompt}
    found = work("edit", "edit", parsed, chosen, strength=parsed.strength, **asked)
    return tell(parsed, found, len(found.after), "edited")


def inpaint(args: list[str]) -> int:
    """Fill in, write the files."""
    parsed, chosen = parse_with_sampling(
        InpaintArgs,
        args,
        verb="inpaint",
        about="Fill in a part of pictures with a trained model; every other pixel stays as it was, "
        "bit for bit. poiesis inpaint RUN --help shows the sampling options of the run's model "
        "too.",
        here="Fill in a part of pictures with {run}, a {name}.",
        examples=_INPAINT,
    )
    asked = {"label": parsed.label, "prompt": parsed.prompt}
    own = {"mask": parsed.mask, "resamples": parsed.resamples}
    found = work("edit", "inpaint", parsed, chosen, **own, **asked)
    return tell(parsed, found, len(found.after), "filled in")


def work(module: str, verb: str, parsed: Any, chosen: dict[str, Any], **own: Any) -> Any:
    """Call a verb of poiesis.apply with the options that all of these have; return what it found.

    chosen: sampling options. own: the verb's own options.
    """
    import torch

    apply = importlib.import_module(f"poiesis.apply.{module}")
    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        return getattr(apply, verb)(
            parsed.run,
            parsed.input or "",
            out=parsed.out,
            variants=parsed.variants,
            options=chosen,
            seed=parsed.seed,
            split=parsed.split,
            limit=parsed.limit,
            checkpoint=parsed.checkpoint,
            device=parsed.device,
            batch_size=parsed.batch_size,
            progress=advance,
            **own,
        )


def tell(parsed: Any, found: Any, made: int, what: str, **numbers: float) -> int:
    """Print how many pictures were made, where they are, and numbers of them."""
    if parsed.json:
        counts: dict[str, Any] = {"pictures": len(found.inputs), "made": made}
        if found.evaluations is not None:
            counts["evaluations"] = found.evaluations
        print_json({**counts, **numbers, "out": parsed.out})
        return 0
    taken = say(found.evaluations, ", ", " each")
    print(f"{made} pictures of {len(found.inputs)} ({found.inputs.where}){taken}")
    for name, value in numbers.items():
        print(f"  {name:12} {value:.4g}{' dB' if name.startswith('psnr') else ''}")
    if found.paths:
        print(f"{what}: {parsed.out}")
    return 0
