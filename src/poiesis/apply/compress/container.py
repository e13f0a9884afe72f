"""The container .psis: what `compress` writes, and reading what strangers may have written.

    8 bytes    "PSIS" and four that show damage by a transfer as text
    2 + 4 + 4  version; length and CRC-32 of the header (all whole numbers little-endian)
    header     JSON, deflated: which model and machine, what the samples are, the table of chunks
    chunks     one after another to the end of the file

A chunk holds consecutive samples and can be decoded without the others. The table says what it
measures and has two CRC-32 for it: of its bytes, and of what must come out of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from poiesis import config as configs
from poiesis.config import check
from poiesis.errors import DataError, PoiesisError
from poiesis.files import read_bytes, safe_member

__all__ = ["VERSION", "Archive", "Chunk", "Header", "pack_names", "read", "to_bytes"]

MAGIC = b"PSIS\r\n\x1a\n"
VERSION = 1

_PREFIX = struct.Struct("<8sHII")
_MAX_HEADER = 1 << 28
"""Largest header, inflated."""
_MAX_CONTENT = 1 << 32
"""Most values that the samples of a file may have in all."""
_MAX_ROWS = 10_000_000
_MAX_NAMES = 1 << 28
"""Most characters of all names together."""

Method = Literal["deflate", "bits-back", "autoregressive", "latents"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """An entry of the table of chunks."""

    method: Method
    """deflate: the plain levels, as zlib packs them; else the coder that a model serves."""
    rows: int
    """Samples."""
    size: int
    """Bytes in the file."""
    crc: int
    """CRC-32 of these bytes."""
    content: int
    """CRC-32 of what is decoded: levels, or the whole numbers of latents."""
    batches: tuple[int, ...] = ()
    """Rows of one batch, how many such batches follow one another, rows of the next, …."""
    ranges: tuple[int, ...] = ()
    """Lowest and highest number of each part of the latents."""

    def __post_init__(self) -> None:
        check("rows", self.rows, low=1, high=_MAX_CONTENT)
        check("size", self.size, low=1)
        if len(self.batches) % 2 or min(self.batches, default=1) < 1:
            raise DataError(f"batches = {self.batches}")
        if len(self.ranges) % 2:
            raise DataError(f"ranges = {self.ranges}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a file before its chunks."""

    model: str
    """Name of the model."""
    model_hash: str
    """SHA-256 of its weights."""
    step: int
    """Training step of the checkpoint."""
    run: str
    """Where the run lay."""
    machine: dict[str, Any]
    """What the arithmetic depends on: versions, processor, threads."""
    shape: tuple[int, ...]
    """Of one sample."""
    levels: int
    """Number of values that a pixel can have."""
    rows: int
    """Samples in all."""
    names: dict[str, Any]
    """What `pack_names` made of the samples' names."""
    batch_size: int
    """Rows that the networks see at once."""
    labels: tuple[int, ...] | None = None
    """Classes of the samples, if the model is conditional."""
    quality: float | None = None
    """Of a lossy file."""
    step_size: float = 0.0
    """Lossy: distance between neighbouring values of a latent."""
    latents: dict[str, Any] = field(default_factory=dict)
    """Lossy: shape of each part of the latents, by name."""

    def __post_init__(self) -> None:
        for side in self.shape:
            check("shape", side, low=1, high=_MAX_CONTENT)
        check("levels", self.levels, low=2, high=256)
        check("rows", self.rows, low=1, high=_MAX_ROWS)
        check("rows x values", self.rows * math.prod(self.shape), high=_MAX_CONTENT)
        check("batch_size", self.batch_size, low=1, high=1024)
        if self.labels is not None and len(self.labels) != self.rows:
            raise DataError(f"{len(self.labels)} labels for {self.rows} rows")


@dataclass(frozen=True)
class Archive:
    """A container in memory: its header, and each chunk with its bytes."""

    header: Header
    chunks: list[tuple[Chunk, bytes]]
    names: list[str]


def to_bytes(header: Header, chunks: list[tuple[Chunk, bytes]]) -> bytes:
    """Return the bytes of a container."""
    table = [dataclasses.asdict(chunk) for chunk, _ in chunks]
    text = json.dumps({**dataclasses.asdict(header), "chunks": table}, separators=(",", ":"))
    packed = zlib.compress(text.encode(), 9)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(packed), zlib.crc32(packed))
    return b"".join((prefix, packed, *(data for _, data in chunks)))


def read(path: str | Path) -> Archive:
    """Read a container; raises DataError for what is damaged, cut off or of a newer format.

    All sizes are checked before memory is taken for them, all bytes against their CRC-32.
    """
    data = read_bytes(path)
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise DataError(f"{path}: is no .psis file; give one that poiesis compress wrote")
    if len(data) < _PREFIX.size:
        raise _cut(path)
    _, version, length, crc = _PREFIX.unpack_from(data)
    if version > VERSION:
        raise DataError(
            f"{path}: has format {version}, this poiesis reads up to {VERSION}; update poiesis"
        )
    packed = data[_PREFIX.size : _PREFIX.size + length]
    if len(packed) < length:
        raise _cut(path)
    if zlib.crc32(packed) != crc:
        raise _damaged(path, "its header")
    header, table, names = _parse(packed, path)
    chunks, at = [], _PREFIX.size + length
    left = len(data) - at - sum(chunk.size for chunk in table)
    if left < 0:
        raise _cut(path)
    if left > 0:
        raise _damaged(path, f"{left:,} bytes after its end")
    for number, chunk in enumerate(table):
        part = data[at : at + chunk.size]
        at += chunk.size
        if zlib.crc32(part) != chunk.crc:
            raise _damaged(path, f"chunk {number + 1} of {len(table)}")
        chunks.append((chunk, part))
    return Archive(header, chunks, names)


def _parse(packed: bytes, path: object) -> tuple[Header, list[Chunk], list[str]]:
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(packed, _MAX_HEADER)
        if not unpack.eof:
            raise ValueError("too large")
        fields = json.loads(text)
        table = [configs.from_dict(Chunk, entry) for entry in fields.pop("chunks")]
        header = configs.from_dict(Header, fields)
        names = _unpack_names(header.names, header.rows, path)
        sound = sum(chunk.rows for chunk in table) == header.rows
    except (PoiesisError, ValueError, TypeError, AttributeError, KeyError, zlib.error):
        sound = False
    except RecursionError:
        sound = False
    if not sound:
        raise _damaged(path, "its header")
    return header, table, names


def _cut(path: object) -> DataError:
    return DataError(f"{path}: is cut off; fetch it again")


def _damaged(path: object, what: str) -> DataError:
    return DataError(f"{path}: is damaged ({what}); fetch it again")


# -- names -----------------------------------------------------------------------------------------


def pack_names(names: list[str]) -> dict[str, Any]:
    """Return names as a pattern with a number that counts up, where they are so, else a list."""
    first = names[0]
    start, end = _number(first)
    if 0 < end - start < 16:
        pattern = {
            "before": first[:start],
            "first": int(first[start:end]),
            "digits": end - start,
            "after": first[end:],
        }
        if _counted(pattern, len(names)) == names:
            return pattern
    return {"list": names}


def _number(name: str) -> tuple[int, int]:
    """Return where the last number in a name begins and ends; both are the same without one."""
    found = re.search(r"([0-9]+)[^0-9]*$", name)
    return found.span(1) if found else (0, 0)


def _counted(pattern: dict[str, Any], count: int) -> list[str]:
    before, after, digits = pattern["before"], pattern["after"], int(pattern["digits"])
    first = int(pattern["first"])
    if not 0 < digits < 16 or count * (len(before) + digits + len(after)) > _MAX_NAMES:
        raise DataError(f"digits = {digits}")
    return [f"{before}{number:0{digits}d}{after}" for number in range(first, first + count)]


def _unpack_names(packed: dict[str, Any], rows: int, path: object) -> list[str]:
    names = packed["list"] if "list" in packed else _counted(packed, rows)
    if len(names) != rows or len(set(names)) != rows:
        raise DataError("names")
    return [safe_member(path, name) for name in names]
