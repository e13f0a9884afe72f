"""Image sets that come as arrays: scikit-learn's digits, idx files (MNIST), CIFAR-10's records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.data.codecs import ImageCodec
from poiesis.data.codecs.image import convert, fit
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.splits import Images, MemoryRows, assemble
from poiesis.errors import ConfigError, DataError
from poiesis.files import read_bytes, read_idx, tar_members

__all__ = ["array_images", "describe", "open_cifar", "open_digits", "open_idx"]

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32


def describe(config: DataConfig) -> list[str]:
    """Return what the options do to pictures, in words for the variant's name."""
    steps = []
    if config.channels is not None:
        steps.append({1: "as grey", 3: "as RGB", 4: "as RGBA"}[config.channels])
    if config.resize is not None:
        steps.append(f"shorter side resized to {config.resize}")
    if config.resize is not None or config.crop is not None:
        side = config.crop or config.resize
        steps.append(f"centre crop {side}x{side}")
    return steps


def array_images(
    name: str, parts: dict[str, MemoryRows], classes: tuple[str, ...], config: DataConfig
) -> Images:
    """Apply resize, crop and channels to sets in memory."""
    steps = describe(config)
    first = next(iter(parts.values()))
    if steps:
        if first.levels != 256:
            raise ConfigError(f"data.resize, crop and channels need 256 levels; {name} has fewer")
        parts = {part: MemoryRows(_change(rows.x, config), rows.y) for part, rows in parts.items()}
        first = next(iter(parts.values()))
    _, channels, height, width = first.x.shape
    codec = ImageCodec(
        channels=channels,
        size=(height, width),
        levels=first.levels,
        resize=config.resize,
        crop=config.crop,
    )
    return Images(name, parts, codec, classes, steps)


def _change(x: Tensor, config: DataConfig) -> Tensor:
    codec = ImageCodec(channels=x.shape[1], size=(x.shape[2], x.shape[3]))
    rows = []
    for row in x:
        picture = fit(convert(codec.decode(row), config.channels), config.resize, config.crop)
        pixels = np.array(picture).reshape(picture.height, picture.width, -1)
        rows.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return torch.stack(rows)


def open_digits(config: DataConfig) -> DataSet:
    """Return scikit-learn's 1,797 digits, 8x8, levels 0…16 (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = torch.from_numpy(np.asarray(bunch["images"], np.uint8))[:, None]
    y = torch.from_numpy(np.asarray(bunch["target"], np.int64))
    names = tuple(map(str, range(10)))
    rows = MemoryRows(x.contiguous(), y, levels=17)
    return assemble(array_images("digits", {"all": rows}, names, config), config)


def _idx_file(folder: Path, part: str, kind: str, dims: int) -> Path:
    for pattern in (f"{part}-{kind}-idx{dims}-ubyte", f"{part}-{kind}.idx{dims}-ubyte"):
        for suffix in ("", ".gz"):
            if (folder / (pattern + suffix)).is_file():
                return folder / (pattern + suffix)
    raise DataError(f"{folder}: has no {part}-{kind}-idx{dims}-ubyte(.gz); fetch it again")


def open_idx(folder: Path, name: str, config: DataConfig) -> DataSet:
    """Return the set of four idx files in a folder, compressed or not (LeCun et al. 1998)."""
    parts: dict[str, MemoryRows] = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = _idx_file(folder, prefix, "images", 3)
        x, y = read_idx(path), read_idx(_idx_file(folder, prefix, "labels", 1))
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or not x.size:
            raise DataError(
                f"{path}: images of shape {x.shape} don't go with labels of shape {y.shape}; "
                "fetch both again"
            )
        labels = torch.from_numpy(y.astype(np.int64))
        parts[part] = MemoryRows(torch.from_numpy(x.copy())[:, None], labels)
    if parts["train"].x.shape[1:] != parts["test"].x.shape[1:]:
        raise DataError(f"{folder}: training and test images differ in size; fetch them again")
    count = 1 + max(int(rows.y.max()) for rows in parts.values() if rows.y is not None)
    classes = tuple(map(str, range(count)))
    if name == "fashion-mnist":
        classes = FASHION
    return assemble(array_images(name, parts, classes, config), config)


FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def _batches(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.name.endswith((".bin", ".bin.gz")):
                yield file.name, read_bytes(file)
    elif path.name.endswith((".bin", ".bin.gz")):
        yield path.name, read_bytes(path)
    else:
        found = tar_members(path, lambda member: member.endswith(".bin"))
        yield from sorted((member.rpartition("/")[2], data) for member, data in found)


def open_cifar(path: Path, name: str, config: DataConfig) -> DataSet:
    """Return CIFAR-10 from its binary version: a folder, one file of records or the tar file.

    Records are one label byte and 3,072 bytes of 32x32 red, green and blue (Krizhevsky 2009).
    Without test_batch.bin the set has no official parts.
    """
    found: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for file, data in _batches(path):
        if not data or len(data) % RECORD:
            what = f"{len(data):,} bytes are no whole number of records of {RECORD:,}"
            raise DataError(f"{path}: {file}: {what}; fetch it again")
        records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        if records[:, 0].max() > 9:
            raise DataError(f"{path}: {file}: has a label above 9, so it is not CIFAR-10; check it")
        found["test" if file.startswith("test") else "train"].append(records)
    if not found["train"]:
        raise DataError(f"{path}: has no data_batch_*.bin; fetch the binary version of CIFAR-10")
    parts = {}
    for part, pieces in found.items():
        if pieces:
            records = np.concatenate(pieces)
            x = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
            parts[part] = MemoryRows(x, torch.from_numpy(records[:, 0].astype(np.int64)))
    if "test" not in parts:
        parts = {"all": parts["train"]}
    return assemble(array_images(name, parts, CIFAR, config), config)
