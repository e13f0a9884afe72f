"""The data a trained model is put to use on: files, or a split of a data set, in its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from poiesis import config as configs
from poiesis.config import check
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.data.sources.images import Found, list_folder
from poiesis.errors import CapabilityError, DataError
from poiesis.files import IMAGE_SUFFIXES, Zip, read_bytes, read_image
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained
from poiesis.spec import Grid

__all__ = ["Inputs", "codes", "in_batches", "open_inputs"]

Progress = Callable[[str, int, int], None]
"""Called with (what is done, samples just finished, samples in all)."""


@dataclass(frozen=True)
class Inputs:
    """Named native rows. `fetch(start, end)` returns them, (b, *spec.shape)."""

    where: str
    names: list[str]
    labels: list[int] | None
    """Class numbers of the run's own classes, where they are known."""
    fetch: Callable[[int, int], Tensor]

    def __len__(self) -> int:
        return len(self.names)


def open_inputs(
    trained: Trained,
    source: str = "",
    *,
    split: str = "test",
    limit: int | None = None,
    exact: bool = False,
) -> Inputs:
    """Open what a user points at, in the format of the run.

    source: an image file, a folder or .zip of images, or the name of a data set, of which `split`
    is taken; empty is the run's own data. Names are paths, or split and number. A folder that is
    called as a class of the run gives its files that label. limit: the first so many, of a data
    set as many spread evenly. exact: refuse pictures that the run's format would change. Raises
    DataError for what is missing or has another format.
    """
    check("limit", limit, low=1)
    path = Path(source).expanduser()
    if source and path.exists():
        if not isinstance(trained.data_spec, Grid):
            raise CapabilityError(
                f"this {trained.name} learned {trained.data_spec}; files are read for images only: "
                "give the name of a data set of that kind"
            )
        return _from_files(trained, path, limit, exact)
    config = configs.from_dict(DataConfig, trained.config["data"], path="data.")
    data = open_data(source or config.source, dataclasses.replace(config, augment=()))
    if data.spec != trained.data_spec:
        raise DataError(f"{data.name} is {data.spec}, but the run learned {trained.data_spec}")
    if split not in data.splits:
        raise DataError(f"{data.name} has no split {split!r}; it has: {', '.join(data.splits)}")
    rows = data.splits[split]
    chosen = torch.arange(len(rows))
    if limit is not None and limit < len(rows):
        chosen = torch.linspace(0, len(rows) - 1, limit).round().long()
    classes = getattr(rows, "y", None)
    return Inputs(
        f"{data.variant}, {split}",
        [f"{split}-{number:06d}" for number in chosen.tolist()],
        None if classes is None else classes[chosen].tolist(),
        lambda start, end: rows.fetch(chosen[start:end])[0],
    )


def _from_files(trained: Trained, path: Path, limit: int | None, exact: bool) -> Inputs:
    if path.is_dir():
        found = list_folder(path)
    elif path.name.lower().endswith(".zip"):
        archive = Zip(path)
        names = sorted(n for n in archive.names if n.lower().endswith(IMAGE_SUFFIXES))
        found = Found(path, names, archive.read)
    else:
        found = Found(path.parent, [path.name], lambda name: read_bytes(path))
    # Not a sample: the overview that lies beside those that the verb `sample` wrote.
    names = [name for name in found.names if PurePosixPath(name).name != "grid.png"][:limit]
    if not names:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{path}: holds no images; give a file, folder or .zip of {kinds}")

    def fetch(start: int, end: int) -> Tensor:
        rows = []
        for name in names[start:end]:
            picture = read_image(found.read(name), f"{found.where}/{name}")
            try:
                rows.append(trained.codec.encode(picture))
            except DataError as error:
                raise DataError(f"{found.where}/{name}: {error}") from None
            if exact and not _alike(trained.codec.decode(rows[-1]), picture):
                spec = trained.data_spec
                raise DataError(
                    f"{found.where}/{name}: is {picture.width} x {picture.height} px, "
                    f"{picture.mode}, which {spec} doesn't hold exactly; convert it first, or "
                    "compress with --quality"
                )
        return torch.stack(rows)

    known = trained.condition.names if trained.condition is not None else ()
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    own = [next((known.index(f) for f in parts if f in known), None) for parts in folders]
    labels = [label for label in own if label is not None]
    return Inputs(str(path), names, labels if len(labels) == len(names) else None, fetch)


def _alike(a: Image.Image, b: Image.Image) -> bool:
    """Return whether two pictures have the same pixels, whatever they are stored as."""
    return a.size == b.size and a.convert("RGBA").tobytes() == b.convert("RGBA").tobytes()


def in_batches(
    trained: Trained,
    inputs: Inputs,
    *,
    batch_size: int = 256,
    what: str = "samples",
    progress: Progress | None = None,
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Yield (start, end, rows in the model's view, their classes if the model wants them)."""
    model = trained.model
    if model.condition is not None and inputs.labels is None:
        raise DataError(
            f"{inputs.where}: this {trained.name} is conditional; lay the files out in folders "
            f"called as its classes, e.g. {(model.condition.names or ('0',))[0]}"
        )
    for start in range(0, len(inputs), batch_size):
        end = min(len(inputs), start + batch_size)
        x = trained.view.apply(inputs.fetch(start, end)).to(model.device)
        y = None
        if model.condition is not None and inputs.labels is not None:
            y = torch.tensor(inputs.labels[start:end], device=model.device)
        yield start, end, x, y
        if progress is not None:
            progress(what, end - start, len(inputs))


@torch.no_grad()
def codes(
    trained: Trained, inputs: Inputs, *, batch_size: int = 256, progress: Progress | None = None
) -> Tensor:
    """Return what the model's `encode` calls z, flattened, float32 (n, z).

    Raises CapabilityError, naming models that can, for a model without `encode`.
    """
    require(trained.model, "encode")
    model: Any = trained.model
    out = []
    for _, _, x, y in in_batches(
        trained, inputs, batch_size=batch_size, what="codes", progress=progress
    ):
        latent = model.encode(x, y)
        z = latent["z"] if isinstance(latent, dict) else latent
        out.append(z.float().flatten(1).cpu())
    return torch.cat(out)
