"""`poiesis denoise`: data cleaned by a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["DenoiseArgs", "run"]

_EXAMPLES = (
    "poiesis denoise runs/first noisy/ -o cleaned",
    "poiesis denoise runs/first noisy/ --clean originals/ -o cleaned",
    "poiesis denoise runs/speech noisy.wav -o cleaned",
    "poiesis denoise runs/first --add gaussian --level 0.5 -o cleaned",
)


@dataclass(frozen=True, kw_only=True)
class DenoiseArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    input: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="INPUT")] = None
    """Image or WAV file, folder of these, .zip of images, table, or name of a data set (default:
    the run's own data)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the cleaned files, by the same names (rows of a table: cleaned.csv), and a sheet
    before-after.png."""
    clean: str | None = None
    """The same files without noise: says how well it went, in PSNR and SSIM; sound and vectors:
    in SNR."""
    add: Literal["gaussian", "salt-and-pepper", "masking"] | None = None
    """INPUT is clean: spoil it first with this noise, to see what the model can do."""
    level: float = 0.5
    """With --add: standard deviation in units of the range from black to white (of a column its own
    spread, of sound the loudness of the training data), or share of values."""
    seed: int = 0
    """With --add: seed of the noise."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int | None = None
    """At most so many samples."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 256
    """Samples cleaned at once: a matter of speed and memory."""
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
        check("--seed", self.seed, low=0)
        check("--batch-size", self.batch_size, low=1)
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Clean, write the files, print how much it helped where that is known."""
    parsed = parse(
        DenoiseArgs,
        args,
        prog="poiesis denoise",
        description="Clean data with a trained model that reconstructs: a denoising-autoencoder "
        "trained on such noise does it best. With --clean or --add it says how close the result "
        "is to the clean data, before and after: psnr in dB (sound, vectors: snr), ssim up to 1.",
        examples=_EXAMPLES,
    )
    import torch

    from poiesis.apply.denoise import denoise

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        found = denoise(
            parsed.run,
            parsed.input or "",
            out=parsed.out,
            clean=parsed.clean,
            add=parsed.add,
            level=parsed.level,
            seed=parsed.seed,
            split=parsed.split,
            limit=parsed.limit,
            checkpoint=parsed.checkpoint,
            device=parsed.device,
            batch_size=parsed.batch_size,
            progress=advance,
        )
    if parsed.json:
        print_json({"samples": len(found.cleaned), **found.numbers, "out": parsed.out})
        return 0
    print(f"{len(found.cleaned)} samples ({found.inputs.where})")
    for name, value in found.numbers.items():
        print(
            f"  {name:12} {value:.4g}{' dB' if name.partition('_')[0] in ('psnr', 'snr') else ''}"
        )
    if found.paths:
        print(f"cleaned: {parsed.out}")
    return 0
