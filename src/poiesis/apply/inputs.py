"""The data a trained model is put to use on: files, or a split of a data set, in its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from poiesis import config as configs
from poiesis.apply.recordings import open_recordings
from poiesis.config import check
from poiesis.data import open_data
from poiesis.data.codecs import AudioCodec, VectorCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import Codec
from poiesis.data.sources.audio import windows
from poiesis.data.sources.images import Found, list_folder
from poiesis.data.sources.tables import rows_of
from poiesis.errors import CapabilityError, DataError
from poiesis.files import IMAGE_SUFFIXES, Zip, is_table, read_bytes, read_image, read_table
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained
from poiesis.spec import Captions, Classes, Grid, Picture

__all__ = ["Inputs", "codes", "flat_code", "in_batches", "latent_parts", "open_inputs"]

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
    classes: list[str] | None = None
    """Names of the rows' classes, where they are known; also of those that the run knows not."""
    pictures: Callable[[int, int], Tensor] | None = None
    """As `fetch`, of the pictures that go with the rows, where the data are pairs."""

    def __len__(self) -> int:
        return len(self.names)


def open_inputs(
    trained: Trained,
    source: str = "",
    *,
    split: str = "test",
    limit: int | None = None,
    all_classes: bool = False,
    exact: bool = False,
    codec: Codec | None = None,
) -> Inputs:
    """Open what a user points at, in the format of the run.

    source: an image file, a folder or .zip of images, a table with the run's columns, a WAV file or
    a folder of them (cut into windows), or the name of a data set, of which `split` is taken; empty
    is the run's own data. Names are paths, or split and number. A folder that is
    called as a class of the run gives its files that label. limit: the first so many, of a data
    set as many spread evenly. all_classes: of a data set also the classes that the run left out
    with data.classes; there are no labels then. exact: refuse pictures that the run's format would
    change. codec: reads pictures, where that is not the run's own. Raises DataError for what is
    missing or has another format.
    """
    check("limit", limit, low=1)
    path = Path(source).expanduser()
    if source and path.exists():
        if isinstance(trained.codec, VectorCodec):
            return _from_table(trained, trained.codec, path, limit)
        if isinstance(trained.codec, AudioCodec):
            return _from_recordings(trained.codec, path, limit)
        if not isinstance(trained.data_spec, Grid) or len(trained.data_spec.size) != 2:
            raise CapabilityError(
                f"this {trained.name} learned {trained.data_spec}; files are read for images only: "
                "give the name of a data set of that kind"
            )
        return _from_files(trained, path, limit, exact, codec or trained.codec)
    config = configs.from_dict(DataConfig, trained.config["data"], path="data.")
    # The run's choice of classes is one of its own data.
    own = source in ("", config.source) and not all_classes
    config = dataclasses.replace(config, augment=(), classes=config.classes if own else ())
    data = open_data(source or config.source, config)
    if data.spec != trained.data_spec:
        raise DataError(f"{data.name} is {data.spec}, but the run learned {trained.data_spec}")
    if split not in data.splits:
        raise DataError(f"{data.name} has no split {split!r}; it has: {', '.join(data.splits)}")
    rows = data.splits[split]
    chosen = torch.arange(len(rows))
    if limit is not None and limit < len(rows):
        chosen = torch.linspace(0, len(rows) - 1, limit).round().long()
    # Attributes are no classes: nothing here asks for them.
    classes = data.condition if isinstance(data.condition, Classes) else None
    labels = getattr(rows, "y", None)
    labels = None if labels is None or classes is None else labels[chosen].tolist()
    names: tuple[str, ...] = () if classes is None else classes.names
    return Inputs(
        f"{data.variant}, {split}",
        [f"{split}-{number:06d}" for number in chosen.tolist()],
        None if all_classes else labels,
        lambda start, end: rows.fetch(chosen[start:end])[0],
        [names[label] for label in labels] if labels and names else None,
        (lambda start, end: rows.fetch(chosen[start:end])[1])
        if isinstance(data.condition, Picture)
        else None,
    )


def _from_table(trained: Trained, codec: VectorCodec, path: Path, limit: int | None) -> Inputs:
    """Return the rows of a table by the names of the run's columns; others are not looked at."""
    if not is_table(path.name):
        raise DataError(f"{path}: is no table; give a .csv, .npy, .npz or .parquet file")
    table = read_table(path, as_words=codec.label or None)
    x, _, _ = rows_of(table, codec.columns)
    rows = codec.encode(x[:limit])
    if not len(rows):
        raise DataError(f"{path}: holds no rows; add some")
    names = [f"row-{place + table.first:06d}" for place in range(len(rows))]
    known = trained.condition.names if trained.condition is not None else ()
    labels = [known.index(word) for word in (table.kept or [])[: len(rows)] if word in known]
    complete = labels if len(labels) == len(rows) else None
    return Inputs(str(path), names, complete, lambda start, end: rows[start:end])


def _from_recordings(codec: AudioCodec, path: Path, limit: int | None) -> Inputs:
    """Return the windows of WAV files one after the other, called FILE@FIRST-SAMPLE."""
    found = open_recordings(codec, path)
    parts = [windows(signal[0].numpy(), codec.length) for signal in found.signals]
    names = [
        f"{name}@{place * codec.length}"
        for name, part in zip(found.names, parts, strict=True)
        for place in range(len(part))
    ]
    rows = codec.native(torch.cat([torch.from_numpy(part.copy()) for part in parts])[:, None])
    return Inputs(str(path), names[:limit], None, lambda start, end: rows[start:end])


def _from_files(
    trained: Trained, path: Path, limit: int | None, exact: bool, codec: Codec
) -> Inputs:
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
                rows.append(codec.encode(picture))
            except DataError as error:
                raise DataError(f"{found.where}/{name}: {error}") from None
            if exact and not _alike(codec.decode(rows[-1]), picture):
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
    in_folders = all(folders)
    return Inputs(
        str(path),
        names,
        labels if len(labels) == len(names) else None,
        fetch,
        [parts[-1] for parts in folders] if in_folders else None,
    )


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
    # A caption may be left open.
    condition = None if isinstance(model.condition, Picture) else model.condition
    if condition is not None and not isinstance(condition, Captions) and inputs.labels is None:
        raise DataError(
            f"{inputs.where}: this {trained.name} is conditional; lay the files out in folders "
            f"called as its classes, e.g. {(condition.names or ('0',))[0]}"
        )
    for start in range(0, len(inputs), batch_size):
        end = min(len(inputs), start + batch_size)
        x = trained.view.apply(inputs.fetch(start, end)).to(model.device)
        y = None
        if condition is not None and inputs.labels is not None:
            y = torch.tensor(inputs.labels[start:end], device=model.device)
        yield start, end, x, y
        if progress is not None:
            progress(what, end - start, len(inputs))


@torch.no_grad()
def codes(
    trained: Trained, inputs: Inputs, *, batch_size: int = 256, progress: Progress | None = None
) -> Tensor:
    """Return the codes of all inputs by the model's `encode`, float32 (n, z); see `flat_code`.

    Raises CapabilityError, naming models that can, for a model without `encode`.
    """
    require(trained.model, "encode")
    model: Any = trained.model
    out = []
    for _, _, x, y in in_batches(
        trained, inputs, batch_size=batch_size, what="codes", progress=progress
    ):
        out.append(flat_code(model.encode(x, y)).cpu())
    return torch.cat(out)


def latent_parts(latent: Any) -> dict[str, Tensor]:
    """Return by name what `decode` needs of what `encode` returned.

    That is z where there is one, else, as of a hierarchy, all of it; a bare tensor counts as z.
    """
    if not isinstance(latent, Mapping):
        return {"z": latent}
    return {"z": latent["z"]} if "z" in latent else dict(latent)


def flat_code(latent: Any) -> Tensor:
    """Return the parts of what `encode` gave side by side, one float32 row a sample, (b, z)."""
    parts = latent_parts(latent).values()
    return torch.cat([part.float().flatten(1) for part in parts], dim=1)
