"""Arrays: idx, npy, npz, safetensors; the shape is judged before memory is taken."""

from __future__ import annotations

import ast
import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from poiesis.errors import DataError
from poiesis.files._archives import Zip
from poiesis.files._pickles import unpickle
from poiesis.files._plain import (
    BROKEN,
    MAX_FILE,
    bad,
    exactly,
    expansion_limit,
    open_stream,
    os_error,
)

if TYPE_CHECKING:
    from torch import Tensor


def read_idx(path: str | Path) -> np.ndarray:
    """Return the uint8 array of an idx file (the format of MNIST), compressed or not.

    Up to four dimensions; the length must be what the header says, no byte more or less.
    """
    try:
        with open_stream(path) as stream:
            head = exactly(stream, 4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise bad(
                    path, f"is not an idx file of bytes (starts with {head.hex() or 'nothing'})"
                )
            dims = exactly(stream, 4 * head[3])
            if len(dims) < 4 * head[3]:
                raise bad(path, "ends inside its header")
            shape = struct.unpack(f">{head[3]}I", dims)
            size = math.prod(shape)
            if size > min(MAX_FILE, expansion_limit(path)):
                raise bad(path, f"its header asks for {size:,} bytes (shape {shape})")
            data = exactly(stream, size + 1)
    except DataError:
        raise
    except BROKEN as error:
        raise bad(path, f"is broken or truncated ({error})") from None
    if len(data) != size:
        has = "more" if len(data) > size else f"{len(data):,}"
        raise bad(path, f"its header says {size:,} bytes (shape {shape}), it has {has}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def parse_npy(data: bytes, name: object, *, objects: bool = False) -> np.ndarray:
    """Return the array in the bytes of an npy file; its shape must fit the bytes that are there.

    objects: also read arrays of arrays and numbers, through the allow-list of `unpickle`.
    """
    try:
        if data[:6] != b"\x93NUMPY" or data[6] not in (1, 2, 3):
            raise ValueError("no npy file")
        wide = data[6] > 1
        start = 12 if wide else 10
        (length,) = struct.unpack("<I" if wide else "<H", data[8:start])
        if length > 10_000:
            raise ValueError("oversized header")
        # Python 2 wrote long integers as 12L.
        text = re.sub(r"(\d)L", r"\1", data[start : start + length].decode("latin1"))
        header = ast.literal_eval(text.strip())
        shape, dtype = (
            tuple(map(int, header["shape"])),
            np.lib.format.descr_to_dtype(header["descr"]),
        )
        order = "F" if header["fortran_order"] else "C"
        if min(shape, default=0) < 0:
            raise ValueError("negative size")
    except Exception as error:
        raise bad(name, f"is not an npy array ({error})") from None
    body = memoryview(data)[start + length :]
    if dtype.hasobject:
        if not objects or dtype != np.dtype(object):
            raise bad(name, "holds pickled objects, which are not read", "save plain arrays")
        return np.asarray(unpickle(bytes(body), name))
    if math.prod(shape) * dtype.itemsize > len(body) or dtype.itemsize == 0:
        raise bad(name, f"its header asks for shape {shape} of {dtype}, it has {len(body):,} bytes")
    return np.frombuffer(body, dtype, math.prod(shape)).reshape(shape, order=order).copy()


def read_npz(path: str | Path, *, objects: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name; expansion and shapes are capped."""
    archive = Zip(path)
    try:
        return {
            name.removesuffix(".npy"): parse_npy(
                archive.read(name), f"{path}:{name}", objects=objects
            )
            for name in archive.names
        }
    finally:
        archive.close()


def read_safetensors(path: str | Path, *, finite: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; with `finite`, a NaN or infinity is an error."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except OSError as error:
        raise os_error(path, error) from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise bad(path, f"is not a whole safetensors file ({error})") from None
    for name, tensor in tensors.items():
        if finite and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise bad(path, f"its tensor {name!r} holds NaN or infinity")
    return tensors
