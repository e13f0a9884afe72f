"""`poiesis translate` and `poiesis upscale`: images made of pictures."""

from __future__ import annotations

from dataclasses import dataclass

from poiesis.cli.edit import PictureArgs, tell, work
from poiesis.cli.sampling import parse_with_sampling

__all__ = ["TranslateArgs", "UpscaleArgs", "run", "upscale"]

_EXAMPLES = (
    "poiesis translate runs/facades maps/ -o photos",
    "poiesis translate runs/facades --split validation --limit 10 --variants 3 -o photos",
    "poiesis translate runs/colours old-photo.png -o coloured",
)
_UPSCALE = (
    "poiesis upscale runs/flowers small/ -o large",
    "poiesis upscale runs/flowers small.png --variants 4 -o large",
    "poiesis upscale runs/flowers --limit 10 --sampling.steps 10 -o large",
)


@dataclass(frozen=True, kw_only=True)
class TranslateArgs(PictureArgs):
    """Options of the verb translate."""


@dataclass(frozen=True, kw_only=True)
class UpscaleArgs(PictureArgs):
    """Options of the verb upscale."""


def run(args: list[str]) -> int:
    """Translate, write the files."""
    parsed, chosen = parse_with_sampling(
        TranslateArgs,
        args,
        verb="translate",
        about="Make images of pictures with a model that learned to: on pairs (--data.pairs), or "
        "with --model.task colourise. Of a data set it also says how close they are to the real "
        "ones, psnr in dB and ssim up to 1, next to what one would have without a model (plain). "
        "poiesis translate RUN --help shows the sampling options of the run's model too.",
        here="Make images of pictures with {run}, a {name}.",
        examples=_EXAMPLES,
    )
    found = work("translate", "translate", parsed, chosen)
    return tell(parsed, found, len(found.made), "translated", **found.numbers)


def upscale(args: list[str]) -> int:
    """Enlarge, write the files."""
    parsed, chosen = parse_with_sampling(
        UpscaleArgs,
        args,
        verb="upscale",
        about="Make pictures larger with a model trained with --model.task upscale-2 or upscale-4. "
        "Pictures in files have the small size; those of a data set are made small first, and it "
        "says how close the result is to the real ones, next to plain bicubic enlarging: psnr in "
        "dB, ssim up to 1. poiesis upscale RUN --help shows the sampling options too.",
        here="Make pictures larger with {run}, a {name}.",
        examples=_UPSCALE,
    )
    found = work("translate", "upscale", parsed, chosen)
    return tell(parsed, found, len(found.made), "upscaled", **found.numbers)
