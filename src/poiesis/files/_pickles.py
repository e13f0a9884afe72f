"""Pickles of plain values and numpy arrays, built here from checked parts: an allow-list."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np

from poiesis.errors import DataError
from poiesis.files._plain import bad


class _DType:
    """Stands for numpy.dtype while unpickling: keeps code and byte order, nothing else."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biufcSUO]\d{1,4}|b1|\?", str(code)):
            raise ValueError(f"array type {code!r}")
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">", "|", "=") else "|"

    def build(self) -> np.dtype[Any]:
        if self.code[0] == "O":
            return np.dtype(object)
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Stands for numpy.ndarray while unpickling: holds the state until `_resolve` builds it."""

    state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def build(self, memo: dict[int, Any]) -> np.ndarray:
        if self.state is None:
            raise ValueError("an array without content")
        _, shape, kind, fortran, raw = self.state
        dtype, size = kind.build(), math.prod(shape)
        if dtype.hasobject:
            items = [_resolve(item, memo) for item in raw]
            flat = np.empty(len(items), object)
            for position, item in enumerate(items):
                flat[position] = item
        else:
            raw = raw.encode("latin1") if isinstance(raw, str) else raw
            flat = np.frombuffer(raw, dtype).copy()
        if flat.size != size:
            raise ValueError("an array of the wrong length")
        return flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _DType, raw: Any) -> Any:
    kind = dtype.build()
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if kind.hasobject or len(raw) != kind.itemsize:
        raise ValueError("a scalar of the wrong type")
    return np.frombuffer(raw, kind)[0]


_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[f"{_module}._reconstruct"] = _reconstruct
    _ALLOWED[f"{_module}.scalar"] = _scalar


# The pure-Python unpickler: its memo is a dict, where the C one allocates by a hostile index.
_Base: Any = vars(pickle)["_Unpickler"]


class _Unpickler(_Base):
    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _DType)):
            raise DataError("it sets attributes")
        _Base.load_build(self)

    dispatch: ClassVar[dict[int, Any]] = {**_Base.dispatch, pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise DataError(f"it names {module}.{name}") from None


def _resolve(value: Any, memo: dict[int, Any]) -> Any:
    """Replace the stand-ins in nested containers; each shared object is resolved once."""
    key = id(value)
    if key in memo:
        return memo[key]
    if isinstance(value, _Array):
        memo[key] = value.build(memo)
    elif isinstance(value, _DType):
        memo[key] = value.build()
    elif isinstance(value, dict):
        memo[key] = new = type(value)()
        new.update((_resolve(k, memo), _resolve(v, memo)) for k, v in value.items())
    elif isinstance(value, list):
        memo[key] = items = []
        items.extend(_resolve(item, memo) for item in value)
    elif isinstance(value, tuple):
        memo[key] = tuple(_resolve(item, memo) for item in value)
    else:
        return value
    return memo[key]


def unpickle(data: bytes, name: object) -> Any:
    """Return a pickle of plain values, containers and numpy arrays; refuse whatever else it names.

    Classes are looked up in an allow-list and arrays are built here from checked parts, so that
    loading runs no code of the file. Python 2's strings become str (latin1).
    """
    try:
        return _resolve(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except DataError as error:
        way = "only plain values and numpy arrays are read"
        raise bad(name, f"is a pickle that wants to run code ({error})", way) from None
    except Exception as error:
        raise bad(name, f"is a broken pickle ({type(error).__name__})") from None
