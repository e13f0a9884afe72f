"""The verbs `import` and `export`: what all formats share.

A format is a module with two functions. `read(folder, data)` returns a `Foreign`: a model of ours
in plain values, everything checked that can be without building it. `write(trained)` returns the
files of a folder. Neither touches the disk otherwise: here the model is built, and a folder appears
whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import torch

from poiesis import config as configs
from poiesis import registry
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.errors import ConfigError, DataError, RunError, suggest
from poiesis.interop.foreign import Foreign
from poiesis.models.base import GenerativeModel
from poiesis.models.trained import Trained, build, load
from poiesis.runs import Run, environment
from poiesis.spec import to_json
from poiesis.training.config import TrainConfig
from poiesis.training.verb import RunConfig, describe_data

__all__ = ["FORMATS", "export", "import_"]

FORMATS = {"diffusers": "poiesis.interop.diffusers"}
"""Name of a format → its module."""


class _Format(Protocol):
    def read(self, folder: Path, data: DataSet | None) -> Foreign: ...

    def write(self, trained: Trained) -> tuple[dict[str, bytes], list[str]]: ...


def _format(name: str) -> _Format:
    if name not in FORMATS:
        hint = suggest(name, FORMATS) or f"; known: {', '.join(FORMATS)}"
        raise ConfigError(f"no format {name!r}{hint}")
    return importlib.import_module(FORMATS[name])  # type: ignore[return-value]


def import_(
    folder: str | Path,
    out: str | Path,
    *,
    data: str | DataConfig | None = None,
    format: str = "diffusers",
) -> Run:
    """Make a run folder of a model in another toolkit's format.

    data: the data it was trained on, as for `train`, where they are at hand; then the run can be
    evaluated and fine-tuned by name, classes have their names, and padding is cut off samples.
    Raises DataError for a folder that is not whole, or asks for what the model can't do.
    """
    source = Path(folder)
    if not source.is_dir():
        way = "give the folder that holds the model"
        raise DataError(f"{source}: is {'no folder' if source.exists() else 'not there'}; {way}")
    data_config = data if isinstance(data, DataConfig) else DataConfig(source=data or "")
    opened = open_data(data_config.source, data_config) if data_config.source else None
    found = _format(format).read(source, opened)
    cls = registry.model_class(found.model)
    config = configs.from_dict(cls.Config, found.options, path="model.")
    with torch.device("meta"):  # memory is for a network that the weights fit
        _check(build(cls, config, found.spec, found.condition, device="meta"), found, source)
    model = build(cls, config, found.spec, found.condition)
    model.load_state_dict(found.tensors)
    if opened is None:
        opened = DataSet(
            name=source.resolve().name,
            variant=f"{source.resolve().name}, imported",
            spec=found.spec,
            condition=found.condition,
            codec=found.codec,
            splits={},
        )
    run_config = RunConfig(
        name=found.model,
        preset=registry.entry(found.model).preset,
        seed=0,
        data=data_config,
        model=config,
        train=TrainConfig(),
    )
    described = {**describe_data(opened, model), "condition": to_json(found.condition)}
    origin = {"format": format, "files": found.files, "remarks": found.remarks}
    with _whole_folder(Path(out)) as place:
        run = Run.create(place, opened.name, found.model)
        run.write_json("data.json", described)
        run.write_json("env.json", environment())
        run.write_json("import.json", origin)
        if found.sampling:
            run.write_json("sampling.json", found.sampling)
        weights = {"model.safetensors": dict(model.state_dict()), "state.json": {"step": 0}}
        run.save_checkpoint(0, weights)
        run.write_config(run_config.to_dict())
    return Run(out)


def _check(model: GenerativeModel, found: Foreign, source: Path) -> None:
    """Raise DataError that names a weight which does not fit the model."""
    own = model.state_dict()
    for name, tensor in own.items():
        theirs = found.name_of(name)
        if name not in found.tensors:
            raise DataError(
                f"{source}: its weights lack {theirs!r}, which its configuration asks for"
            )
        if found.tensors[name].shape != tensor.shape:
            have, want = (
                "x".join(map(str, t.shape)) or "one" for t in (found.tensors[name], tensor)
            )
            raise DataError(
                f"{source}: its tensor {theirs!r} has the shape {have}, not the {want} that its "
                "configuration asks for"
            )
    spare = [name for name in found.tensors if name not in own]
    if spare:
        raise DataError(
            f"{source}: its weights hold {found.name_of(spare[0])!r}, for which its "
            "configuration has no place"
        )


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str = "diffusers",
    checkpoint: str = "auto",
    weights: Literal["average", "raw"] = "average",
) -> list[str]:
    """Write a run's model as a folder of another toolkit; returns remarks, a line each.

    Raises CapabilityError for a model that the format can't hold.
    """
    writer = _format(to)
    trained = load(run, checkpoint=checkpoint, weights=weights, device="cpu")
    files, remarks = writer.write(trained)
    with _whole_folder(Path(out)) as place:
        try:
            for name, data in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)
        except OSError as error:
            raise RunError(f"can't write {str(out)!r}: {error.strerror or error}") from None
    return remarks


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its place when all is done, and vanishes if not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{str(out)!r} is there already; choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise RunError(f"can't write {str(out)!r}: {error.strerror or error}") from None
    try:
        yield place
        place.chmod(0o777 & ~_umask())  # mkdtemp's folders are the owner's alone
        os.replace(place, out)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
