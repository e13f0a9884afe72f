"""`poiesis compress`: images to one small file, by what a model learned of such images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.cli.output import human_bytes, print_json, progress, stdout_for_json
from poiesis.config import check

__all__ = ["CompressArgs", "run"]

_EXAMPLES = (
    "poiesis compress runs/first pictures/ -o pictures.psis",
    "poiesis compress runs/first pictures/ -o pictures.psis --quality 60",
    "poiesis compress runs/first mnist --split test -o mnist.psis --json",
)


@dataclass(frozen=True, kw_only=True)
class CompressArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    input: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="INPUT")] = None
    """Image file, folder or .zip of images, or name of a data set (default: the run's own data)."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "compressed.psis"
    """File to write, ending in .psis."""
    quality: float | None = None
    """Lossy, 1 to 100: higher is closer and larger (default: lossless)."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of a data set."""
    limit: int | None = None
    """At most so many images."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    batch_size: int = 64
    """Images that the networks see at once, noted in the file."""
    threads: int | None = None
    """Processor threads, noted in the file (default: torch's own choice)."""
    json: bool = False
    """Print one JSON document."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check("--quality", self.quality, low=1, high=100)
        check("--limit", self.limit, low=1)
        check("--batch-size", self.batch_size, low=1, high=1024)
        check("--threads", self.threads, low=1)


def run(args: list[str]) -> int:
    """Compress, verify, write the file, print its size."""
    parsed = parse(
        CompressArgs,
        args,
        prog="poiesis compress",
        description="Compress images with a trained model. Lossless: a vae trained with --preset "
        "compress, a vdvae or a transformer; with --quality lossy: any model that encodes and "
        "decodes. The file needs the run again to be decompressed, on a machine of this kind. It "
        "is decoded and compared before it is written; images that the model would make larger "
        "are kept as they are, deflated.",
        examples=_EXAMPLES,
    )
    import torch

    from poiesis.apply.compress import compress

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with stdout_for_json(parsed.json), progress(parsed.quiet) as advance:
        found = compress(
            parsed.run,
            parsed.input or "",
            out=parsed.out,
            quality=parsed.quality,
            split=parsed.split,
            limit=parsed.limit,
            checkpoint=parsed.checkpoint,
            batch_size=parsed.batch_size,
            progress=advance,
        )
    if parsed.json:
        print_json({"samples": len(found.inputs), **found.numbers, "path": str(found.path)})
        return 0
    numbers = found.numbers
    print(f"{len(found.inputs)} images ({found.inputs.where})")
    print(f"  size      {human_bytes(numbers['bytes'])}, 1/{numbers['ratio']:.1f} of the plain")
    print(f"  rate      {numbers['bits_per_dim']:.4f} bits/dim, the whole file counted")
    if "psnr" in numbers:
        print(f"  quality   {numbers['psnr']:.2f} dB PSNR")
    print(
        f"  speed     {numbers['encode_per_second']:.0f} images/s in, "
        f"{numbers['decode_per_second']:.0f} out"
    )
    if numbers["plain_chunks"]:
        print(
            f"  note      {numbers['plain_chunks']} of {numbers['chunks']} chunks kept plain: the "
            "model would make them larger"
        )
    print(f"compressed and verified: {found.path}")
    return 0
