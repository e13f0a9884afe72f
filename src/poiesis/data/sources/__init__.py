"""Sources: where data is found and how it becomes a `DataSet`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from poiesis.data.augment import check_names
from poiesis.data.codecs import AudioCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources import (
    arrays,
    audio,
    hub,
    images,
    moving_digits,
    planes,
    shapes,
    tables,
    texts,
    videos,
)
from poiesis.errors import ConfigError, DataError, suggest
from poiesis.files import FILM_SUFFIXES, IMAGE_SUFFIXES, WAVE_SUFFIXES, is_table, read_bytes
from poiesis.spec import Grid, Tokens, Vector

__all__ = ["NAMED", "find", "open_data", "roots"]

_IDX = "the four .gz files of the set (train-images-idx3-ubyte.gz, …)"
NAMED: dict[str, tuple[tuple[str, ...], str, str]] = {
    # name → places below a root, what to put there, name on the hub
    "mnist": (("mnist", "MNIST/raw"), _IDX, "ylecun/mnist"),
    "fashion-mnist": (
        ("fashion-mnist", "FashionMNIST/raw"),
        _IDX,
        "zalando-datasets/fashion_mnist",
    ),
    "cifar10": (
        ("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        "data_batch_1.bin … test_batch.bin, or cifar-10-binary.tar.gz",
        "uoft-cs/cifar10",
    ),
    "cifar10-partial": (("cifar10-partial",), "a .bin file of its records", ""),
    "cifar10-jpeg": (
        ("cifar10-jpeg", "cifar10-jpeg.zip"),
        "a .zip with train/<class>/*.jpg and test/<class>/*.jpg",
        "",
    ),
    "tinyshakespeare": (
        ("text/tinyshakespeare.txt", "tinyshakespeare.txt"),
        "the text as tinyshakespeare.txt",
        "",
    ),
    "weizmann64": (
        ("video/weizmann64", "weizmann64"),
        "folders of actions with a .jpg for each clip, its 64 px frames from left to right,",
        "",
    ),
    "fsdd": (("audio/fsdd", "fsdd"), "its recordings as fsdd/recordings/0_jackson_0.wav, …", ""),
    "names": (("text/names.txt", "names.txt"), "the names, one a line, as names.txt", ""),
}
_STRIPS = ("weizmann64",)
"""Named sets whose clips are strips."""


def _mnist() -> DataSet:
    """Return MNIST, whose digits move."""
    return _open(DataConfig(source="mnist"))


BUILT_IN: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": arrays.open_digits,
    "shapes": shapes.open_shapes,
    "moving-digits": partial(moving_digits.open_moving_digits, mnist=_mnist),
    "moving-digits-2": partial(moving_digits.open_moving_digits, mnist=_mnist, digits=2),
    "python-stdlib": texts.open_stdlib,
    "ring": planes.OPENERS["ring"],
    "grid": planes.OPENERS["grid"],
    "swirl": planes.OPENERS["swirl"],
    "moons": planes.OPENERS["moons"],
}


def roots() -> list[Path]:
    """Return the folders where named sets are looked for: $POIESIS_DATA, then ~/.cache/poiesis."""
    chosen = os.environ.get("POIESIS_DATA")
    return [*([Path(chosen)] if chosen else []), Path.home() / ".cache" / "poiesis"]


def find(name: str) -> Path | None:
    """Return the first place where a named set lies, or None."""
    places = NAMED[name][0] if name in NAMED else (name, f"{name}.zip", f"{name}.txt")
    for root in roots():
        for place in places:
            if (root / place).exists():
                return root / place
    return None


def open_data(source: str, config: DataConfig | None = None) -> DataSet:
    """Open a data set by name or path; `config` says how, its own source is replaced.

    Raises DataError for data that is missing or bad, ConfigError for options that don't fit it.
    """
    config = dataclasses.replace(config or DataConfig(), source=str(source))
    check_names(config.augment)
    try:
        dataset = _open(config)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or source}: {reason}; check the path") from None
    _check_options(dataset, config)
    # What went wrong, without the way out: it was taken.
    dataset.skipped = [line.rpartition("; ")[0] or line for line in dataset.skipped]
    dataset.notes["skipped"] = len(dataset.skipped)
    return dataset


def _check_options(dataset: DataSet, config: DataConfig) -> None:
    """Raise ConfigError for an option that is for another kind of data."""
    kind = "images"
    if isinstance(dataset.spec, (Tokens, Vector)):
        kind = "text" if isinstance(dataset.spec, Tokens) else "a table"
    elif isinstance(dataset.codec, AudioCodec):
        kind = "audio"
    elif isinstance(dataset.spec, Grid) and len(dataset.spec.size) == 3:
        kind = "video"
    default = DataConfig()
    for kinds, options in _OPTIONS.items():
        for option in options if kind not in kinds else ():
            if getattr(config, option) != getattr(default, option):
                wanted = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[1:] else kinds)
                raise ConfigError(f"data.{option} is for {wanted}; {dataset.name} is {kind}")


_OPTIONS = {
    ("images",): ("binarize", "augment", "pairs"),
    ("images", "video"): ("resize", "crop", "classes", "captions"),
    ("images", "audio", "video"): ("channels",),
    ("audio",): ("length", "audio"),
    ("video",): ("frames", "frame_step", "clips"),
    ("a table",): ("drop",),
    ("a table", "audio"): ("label",),
}
"""Kinds of data → the options that only they have."""


def _open(config: DataConfig) -> DataSet:
    source = config.source
    if source in BUILT_IN:
        return BUILT_IN[source](config)
    if source.startswith("hf:"):
        return hub.open_hub(config)
    path = Path(source or "?").expanduser()
    if source in NAMED or not path.exists():
        found = find(source) if source else None
        if found is None:
            raise DataError(_missing(source))
        if source in _STRIPS:
            config = dataclasses.replace(config, clips="strips")
        return open_path(found, source, config)
    return open_path(path, path.resolve().name.split(".")[0] or "data", config)


def _missing(source: str) -> str:
    looked = ", ".join(str(root) for root in roots())
    if not os.environ.get("POIESIS_DATA"):
        looked = f"$POIESIS_DATA (not set), {looked}"
    if source in NAMED:
        places, what, hub_name = NAMED[source]
        way = f"put {what} into {roots()[0] / places[0].partition('.')[0]}"
        if "." in places[0]:
            way = f"put {what} into {roots()[0]}"
        if hub_name:
            way += f", or use --data hf:{hub_name} (pip install 'poiesis[hub]')"
        return f"the data set {source!r} is not in {looked}: {way}"
    local = [p.name for root in roots() if root.is_dir() for p in root.iterdir() if p.is_dir()]
    known = [*BUILT_IN, *NAMED, *local]
    hint = suggest(source, known) or f"; named sets: {', '.join([*BUILT_IN, *NAMED])}"
    return f"no file, folder or data set {source!r} (looked here and in {looked}){hint}"


def open_path(path: Path, name: str, config: DataConfig) -> DataSet:
    """Open a file or folder by what lies in it."""
    if path.is_file():
        lower = path.name.lower()
        if lower.endswith(".zip"):
            return _open_pictures(images.list_zip(path, videos.SUFFIXES), name, config)
        if lower.endswith((".bin", ".bin.gz", ".tar", ".tar.gz", ".tgz")):
            return arrays.open_cifar(path, name, config)
        if lower.endswith(IMAGE_SUFFIXES):
            raise DataError(f"{path}: is a single image; give the folder that holds the images")
        if lower.endswith(FILM_SUFFIXES):
            raise DataError(f"{path}: is a single clip; give the folder that holds the clips")
        if lower.endswith(WAVE_SUFFIXES):
            found = images.Found(path.parent, [path.name], lambda _: read_bytes(path))
            return audio.open_audio(found, name, config)
        if is_table(lower):
            return tables.open_table(path, name, config)
        return texts.open_files(path, name, config)
    entries = sorted(path.iterdir())
    names = [entry.name for entry in entries]
    if any("-images" in n and "idx3" in n for n in names):
        return arrays.open_idx(path, name, config)
    if any(n.endswith((".bin", ".bin.gz")) for n in names):
        return arrays.open_cifar(path, name, config)
    if (path / "cifar-10-batches-bin").is_dir():
        return arrays.open_cifar(path / "cifar-10-batches-bin", name, config)
    zips = [entry for entry in entries if entry.name.lower().endswith(".zip")]
    found = images.list_folder(path, videos.SUFFIXES)
    if found.names:
        return _open_pictures(found, name, config)
    sounds = images.list_folder(path, WAVE_SUFFIXES)
    if sounds.names:
        return audio.open_audio(sounds, name, config)
    if len(zips) == 1:
        return _open_pictures(images.list_zip(zips[0], videos.SUFFIXES), name, config)
    return texts.open_files(path, name, config)


def _open_pictures(found: images.Found, name: str, config: DataConfig) -> DataSet:
    clips = videos.clips_in(found, config)
    if clips is not None:
        return videos.open_clips(clips, name, config)
    return images.open_files(found, name, config)
