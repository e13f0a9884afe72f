"""`python -m poiesis.cli.demo`: four families of model on one small data set, in some minutes.

Trains a VAE, a GAN, a diffusion model and a transformer on 8 x 8 handwritten digits for the same
time, judges each in the same way and writes one HTML report. Needs no network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

MODELS = ("vae", "dcgan", "ddpm", "transformer")
DATA = "digits"
SAMPLES = 500
"""Samples each is judged on: more would make judging the diffusion model the longest part."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 2 for a mistake the user can mend, 130 if stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m poiesis.cli.demo",
        description="Train four kinds of generative model on small handwritten digits for the "
        "same time each, judge them alike and write one HTML report.",
    )
    parser.add_argument("--budget", default="55s", help="training time for each (default: 55s)")
    parser.add_argument("--out", default="runs/demo", help="folder (default: runs/demo)")
    options = parser.parse_args(arguments)
    from poiesis.errors import PoiesisError

    try:
        return _demo(options.budget, Path(options.out))
    except PoiesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _demo(budget: str, wanted: Path) -> int:
    from rich.console import Console

    from poiesis.config import parse_duration

    console = Console()
    seconds = parse_duration(budget)
    began = time.monotonic()

    def say(line: str = "") -> None:
        console.print(line, highlight=False, soft_wrap=True)

    out, earlier = _place(wanted)
    say("[bold]Poiesis[/]: four ways to learn what handwritten digits look like")
    say("  vae          squeezes each image into a few numbers, and learns the way back")
    say("  dcgan        a forger and a detective that train each other")
    say("  ddpm         learns to remove noise, then makes images out of noise alone")
    say("  transformer  writes an image pixel by pixel, like text")
    say(f"Each gets the same {seconds:g} s of training on 1,437 images of 8 x 8 pixels; then each")
    say(f"draws {SAMPLES} images, and all are compared with real ones by the same measure.")
    say(f"That takes about {(len(MODELS) * (seconds + 14)) / 60:.0f} minutes in all.")
    if earlier is not None:
        say(f"(An earlier demo is kept: {earlier})")
    say()
    from poiesis.comparison import compare

    result = compare(MODELS, DATA, budget=budget, out=out, samples=SAMPLES)
    say()
    console.print(result.table())
    say()
    say("FID: how far the drawn images are from real ones, 0 is perfect. Coverage: how much of the")
    say("variety of real digits was found. Small numbers below are 95% intervals.")
    say(f"Done in {(time.monotonic() - began) / 60:.1f} minutes. Open this page in a browser:")
    say(f"  [bold]{result.report.resolve()}[/]")
    say(f"More images: poiesis sample {out / MODELS[0]} -n 100")
    failed = [row.model for row in result.rows if row.failure]
    return 1 if failed else 0


def _place(wanted: Path) -> tuple[Path, Path | None]:
    """Return the folder to use, a fresh or unfinished one, and the newest earlier report."""
    place, earlier, number = wanted, None, 1
    while (place / "report.html").exists():
        earlier, number = place / "report.html", number + 1
        place = wanted.with_name(f"{wanted.name}-{number}")
    return place, earlier


if __name__ == "__main__":
    raise SystemExit(main())
