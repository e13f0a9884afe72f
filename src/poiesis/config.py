"""Configurations: frozen dataclasses, to and from plain dicts, YAML and dotted overrides.

The dataclass is the schema: its annotations are checked here, its field docstrings become the help
texts of the command line and the documentation. No torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from poiesis.errors import ConfigError, suggest

__all__ = [
    "check",
    "check_each",
    "field_docs",
    "flatten",
    "from_dict",
    "load_yaml",
    "override",
    "parse_duration",
    "save_yaml",
    "to_dict",
]

T = TypeVar("T")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested plain dicts and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        return value

    return plain(config)


def from_dict(cls: type[T], data: Mapping[str, Any], *, path: str = "", base: T | None = None) -> T:
    """Build dataclass `cls` from a nested dict; missing keys keep `base`'s or the default value.

    Raises ConfigError for an unknown key (with a suggestion) or a value of the wrong type.
    """
    hints = _hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {} if base is None else {n: getattr(base, n) for n in known}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            hint = suggest(name, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown key {path + str(key)!r}{hint}")
        where = f"{path}{name}"
        inner = _dataclass_of(hints[name])
        if inner is not None and isinstance(value, Mapping):
            values[name] = from_dict(inner, value, path=f"{where}.", base=values.get(name))
        else:
            values[name] = _coerce(value, hints[name], where)
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{path.rstrip('.') or cls.__qualname__}: {error}") from None


def override(config: T, changes: Mapping[str, Any]) -> T:
    """Return `config` with dotted keys replaced, e.g. ``{"model.latent_dim": 32}``."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return from_dict(type(config), nested, base=config)


def flatten(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for the leaves of a nested dict."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; raises ConfigError with the line at fault."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the configuration {str(path)!r}: {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{str(path)!r} is not valid YAML{line}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{str(path)!r} holds no mapping of keys to values")
    return data


def save_yaml(data: Mapping[str, Any]) -> str:
    """Return a nested dict as YAML text, in its own order."""
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100)


def parse_duration(text: str | float) -> float:
    """Return seconds from ``"90s"``, ``"5m"``, ``"1h30m"`` or a plain number of seconds."""
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
        rest = re.sub(r"(\d+(?:\.\d+)?)\s*([smhd]?)", "", text.strip().lower()).strip()
        if not parts or rest:
            raise ConfigError(f"{text!r} is not a duration; write e.g. 90s, 5m or 1h30m")
        seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"a duration of {text!r} is not positive; write e.g. 90s, 5m or 1h30m")
    return seconds


def check(
    name: str,
    value: float | None,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Raise ConfigError unless `value` is a finite number in [low, high] ((low, high] if open)."""
    if value is None:
        return
    below = value <= low if open_low else value < low
    if not math.isfinite(value) or below or value > high:
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if high == math.inf else "]"
        raise ConfigError(f"{name} = {value} is outside {left}{low:g}, {high:g}{right}")


def check_each(
    name: str,
    values: Sequence[float],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    most: int | None = None,
    example: str = "64,128",
) -> None:
    """Raise ConfigError unless there are values, `most` of them at most, all in [low, high]."""
    if not values:
        raise ConfigError(f"{name} = () is empty; give at least one, e.g. {example}")
    if most is not None and len(values) > most:
        raise ConfigError(f"{name} = {values} has not 1 to {most} values, e.g. {example}")
    for value in values:
        check(name, value, low=low, high=high)


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring that follows each field of a dataclass, bases included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        body = ast.parse(source).body[0]
        if isinstance(body, ast.ClassDef):
            docs.update(class_field_docs(body))
    return docs


def class_field_docs(node: ast.ClassDef) -> dict[str, str]:
    """Return the docstring after each annotated assignment of a class definition."""
    docs: dict[str, str] = {}
    for item, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[item.target.id] = inspect.cleandoc(str(after.value.value))
    return docs


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _dataclass_of(hint: Any) -> type | None:
    for option in typing.get_args(hint) or (hint,):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if (value is None or value == "none") and type(None) in args:
            return None
        for option in args:
            if option is not type(None):
                try:
                    return _coerce(value, option, where)
                except ConfigError:
                    continue
    elif origin is Literal:
        for option in args:
            if value == option or str(value) == str(option):
                return option
        hint_text = suggest(str(value), map(str, args))
        known = ", ".join(map(str, args))
        raise ConfigError(f"{where} = {value!r} is not one of: {known}{hint_text}")
    elif origin is tuple:
        items = value
        if isinstance(value, str):
            items = [part for part in re.split(r"[,\s]+", value.strip("()[] ")) if part]
        if isinstance(items, (list, tuple)):
            if len(args) == 2 and args[1] is Ellipsis:
                return tuple(_coerce(v, args[0], where) for v in items)
            if len(items) == len(args):
                return tuple(_coerce(v, a, where) for v, a in zip(items, args, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): _coerce(v, args[1], where) for k, v in value.items()}
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1"):
            return True
        if str(value).lower() in ("false", "no", "off", "0"):
            return False
    elif hint is int and not isinstance(value, bool):
        try:
            if float(value) == int(float(value)):
                return int(float(value)) if not isinstance(value, int) else value
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is str and isinstance(value, (str, int, float)):
        return str(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    wanted = getattr(hint, "__name__", None) if not args else str(hint).replace("typing.", "")
    raise ConfigError(f"{where} = {value!r} is not a {wanted or hint}")
