"""`poiesis import`: a model in another toolkit's format becomes a run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from poiesis.cli.options import Nested, parse
from poiesis.cli.output import human_bytes
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError

__all__ = ["ALIASES", "ImportArgs", "run"]

ALIASES = {"--data": "--data.source", "--skip-bad": "--data.skip-bad"}
"""Short spellings of options."""
_EXAMPLES = (
    "poiesis import ddpm-cifar10-32 --out runs/cifar",
    "poiesis import ddpm-cifar10-32 --out runs/cifar --data cifar10-jpeg",
    "poiesis train --config runs/cifar/config.yaml --init runs/cifar --data photos/",
)


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Options of the verb."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of a diffusers pipeline (DDPMPipeline, DDIMPipeline) or of a UNet2DModel alone."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Run folder to make."""
    data: Nested[DataConfig] = dataclasses.field(default_factory=lambda: DataConfig(source=""))


def run(args: list[str]) -> int:
    """Import and say where the run is."""
    parsed = parse(
        ImportArgs,
        args,
        prog="poiesis import",
        description="Make a run folder of a model that diffusers saved, as safetensors: its "
        "network, noise schedule and sampler, exactly. --data names the data it was trained on, "
        "where you have them: evaluate needs them, and classes get their names. What can't be "
        "taken over is said in one line, and then nothing is written.",
        examples=_EXAMPLES,
        aliases=ALIASES,
    )
    if parsed.out is None:
        raise ConfigError(f"poiesis import needs --out RUN; e.g. {_EXAMPLES[0]}")
    from poiesis.interop.frame import import_

    done = import_(parsed.folder, parsed.out, data=parsed.data)
    config, origin = done.config(), done.read_json("import.json")
    size = (done.checkpoint().path / "model.safetensors").stat().st_size
    print(f"{config['name']} from {origin['format']}, {human_bytes(size)} of weights")
    for remark in origin["remarks"]:
        print(f"  note: {remark}")
    for name, value in done.read_json("sampling.json", {}).items():
        print(f"  sampling.{name} = {value}")
    print(f"run: {done.path}")
    return 0
