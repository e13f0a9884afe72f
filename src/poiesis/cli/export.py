"""`poiesis export`: a run's model in another toolkit's format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from poiesis.cli.options import parse
from poiesis.errors import ConfigError

__all__ = ["ExportArgs", "run"]

_EXAMPLES = (
    "poiesis export runs/first --to diffusers --out first-diffusers",
    "poiesis export runs/first --to diffusers --out first-diffusers --checkpoint latest",
)


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Options of the verb."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder of runs: then its newest."""
    to: Literal["diffusers"] = "diffusers"
    """Format."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to make."""
    checkpoint: str = "auto"
    """Which weights: best, latest, a step, or ema:LENGTH for an average of another length; auto is
    best where training watched one."""
    weights: Literal["average", "raw"] = "average"
    """The moving average of the weights, where the model has one, or the last ones."""


def run(args: list[str]) -> int:
    """Export and say where the folder is."""
    parsed = parse(
        ExportArgs,
        args,
        prog="poiesis export",
        description="Write a run's model for another toolkit. diffusers: a ddpm of images, as the "
        "folder that DDPMPipeline.from_pretrained reads; its samplers then draw from it, also the "
        "quick ones (DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)).",
        examples=_EXAMPLES,
    )
    if parsed.out is None:
        raise ConfigError(f"poiesis export needs --out FOLDER; e.g. {_EXAMPLES[0]}")
    from poiesis.interop.frame import export

    remarks = export(
        parsed.run,
        parsed.out,
        to=parsed.to,
        checkpoint=parsed.checkpoint,
        weights=parsed.weights,
    )
    for remark in remarks:
        print(f"  note: {remark}")
    print(f"{parsed.to} folder: {parsed.out}")
    return 0
