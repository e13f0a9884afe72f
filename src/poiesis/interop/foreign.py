"""What formats share: a foreign model in our terms, and reading foreign configuration files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from poiesis.data.dataset import Codec
from poiesis.errors import DataError, suggest
from poiesis.files import read_json
from poiesis.spec import Classes, Spec

__all__ = ["Foreign", "Options", "is_a", "json_bytes"]


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A model read from a foreign folder, in our terms."""

    model: str
    """Its name in the registry."""
    options: dict[str, Any]
    """Fields of its Config."""
    spec: Spec
    """Native spec of its data."""
    condition: Classes | None
    codec: Codec
    tensors: dict[str, Tensor]
    """Weights by our names."""
    name_of: Callable[[str], str]
    """Our name of a weight → the file's."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling options that differ from the model's."""
    remarks: list[str] = field(default_factory=list)
    """What could not be taken over as it was, a line each."""
    files: dict[str, str] = field(default_factory=dict)
    """File → SHA-256."""


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    list: "a list",
}


_WORDS = {"None": "null", "True": "true", "False": "false"}


class Options:
    """The keys of a JSON file, asked for one by one; what is left over in the end is unknown.

    Keys that begin with an underscore are notes.
    """

    def __init__(self, path: Path, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise DataError(f"{path}: holds no mapping of keys to values; fetch it again")
        self.path = path
        self.values: dict[str, Any] = dict(values)
        self._asked: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> Options:
        """Read a file; raises DataError if it is missing or broken."""
        if not path.is_file():
            raise DataError(f"{path}: is not there; fetch the whole folder again")
        return cls(path, read_json(path))

    def take(self, key: str, default: Any, kind: type, *, optional: bool = False) -> Any:
        """Return the value of a key; raises DataError for one of another kind."""
        self._asked.add(key)
        value = self.values.get(key, default)
        if value is None and optional:
            return None
        if not is_a(value, kind):
            raise DataError(f"{self.path}: {key} = {_shown(value)} is not {_KINDS[kind]}")
        return value

    def take_any(self, key: str, default: Any) -> Any:
        """Return the value of a key, of whatever kind."""
        self._asked.add(key)
        return self.values.get(key, default)

    def one_of(self, key: str, default: Any, known: Mapping[Any, Any]) -> Any:
        """Return what the value of a key stands for; raises DataError for one that is not known."""
        self._asked.add(key)
        value = self.values.get(key, default)
        if isinstance(value, (list, dict)) or value not in known:
            words = ", ".join(_WORDS.get(repr(k), str(k)) for k in known)
            near = suggest(str(value), [str(k) for k in known])
            raise DataError(
                f"{self.path}: {key} = {_shown(value)} can't be taken over; known: {words}{near}"
            )
        return known[value]

    def end(self) -> None:
        """Raise DataError for a key that nobody asked for."""
        for key in self.values:
            if not key.startswith("_") and key not in self._asked:
                near = suggest(key, self._asked)
                raise DataError(f"{self.path}: has the unknown option {key!r}{near}")


def is_a(value: Any, kind: type) -> bool:
    """Return whether a JSON value is of a kind; whole numbers are numbers, true is none."""
    if kind in (int, float):
        known = (int, float) if kind is float else int
        # Beyond this they are no numbers that arithmetic can take.
        return isinstance(value, known) and not isinstance(value, bool) and abs(value) <= 2**53
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a configuration file's bytes, keys sorted, numbers as Python writes them."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
