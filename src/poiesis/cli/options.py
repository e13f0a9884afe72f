"""Options from dataclasses: their fields become ``--options``, their docstrings the help (tyro).

Before tyro sees the arguments they are read once against the fields: dashes and underscores are
the same, a comma separates like a space, an option alone is `true`, positional arguments may stand
anywhere, and whatever is wrong gives one line with a suggestion.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import tyro

from poiesis.errors import ConfigError, suggest

__all__ = ["Nested", "Option", "given", "options", "parse", "scan"]

T = TypeVar("T")
Nested = tyro.conf.FlagConversionOff
"""``Nested[DataConfig]``: a group of options, whose booleans take a value: ``--x true``."""

_BOOLS = {"true": "True", "yes": "True", "on": "True", "1": "True"}
_BOOLS |= {"false": "False", "no": "False", "off": "False", "0": "False"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: ``--group.field-name``, or a positional argument."""

    name: str
    """As written on the command line, with its dashes; of a positional the field's name."""
    path: tuple[str, ...]
    """Field names from the outermost dataclass on."""
    kind: Literal["one", "many", "append", "bool", "flag", "positional", "positionals"]
    optional: bool = False
    """May be none."""
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    hint: Any = None


def options(cls: type, *, nested: bool = False, path: tuple[str, ...] = ()) -> list[Option]:
    """Return the options that the fields of a dataclass, and of those nested in it, become."""
    found: list[Option] = []
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, marks = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        where = (*path, field.name)
        if dataclasses.is_dataclass(hint):
            found += options(typing.cast(type, hint), nested=True, path=where)
            continue
        name, aliases = field.name, ()
        for mark in marks:
            name = getattr(mark, "name", None) or name
            aliases = tuple(getattr(mark, "aliases", None) or aliases)
        inner, optional = _unwrap(hint)
        kind: Any = "one"
        if _POSITIONAL in marks:
            kind = "positionals" if typing.get_origin(inner) is tuple else "positional"
        elif typing.get_origin(inner) in (tuple, list):
            kind = "append" if _APPEND in marks else "many"
        elif inner is bool:
            kind = "bool" if nested else "flag"
        flag = "--" + ".".join((*path, name)).replace("_", "-")
        found.append(
            Option(
                name=field.name if kind.startswith("positional") else flag,
                path=where,
                kind=kind,
                optional=optional,
                choices=_choices(inner),
                aliases=aliases,
                hint=inner,
            )
        )
    return found


_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
_APPEND = typing.get_args(tyro.conf.UseAppendAction[tuple[int, ...]])[1]


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """Return a type without its ``| None``, and whether it had one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        return (rest[0] if len(rest) == 1 else hint), len(rest) < len(typing.get_args(hint))
    return hint, False


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return _choices(typing.get_args(hint)[0])
    return ()


def scan(
    args: Sequence[str],
    known: Sequence[Option],
    *,
    prog: str,
    aliases: Mapping[str, str] | None = None,
    ignore: str = "",
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the positional arguments, and option name → its values as strings.

    aliases: other spellings of options. ignore: options that begin like this are passed over (a
    first pass that knows them not yet). Raises ConfigError for an unknown option or a missing
    value.
    """
    table = {flag: o for o in known for flag in (o.name, *o.aliases) if flag.startswith("-")}
    table |= {short: table[full] for short, full in (aliases or {}).items() if full in table}
    positionals: list[str] = []
    values: dict[str, list[str]] = {}
    queue = list(args)
    while queue:
        token = queue.pop(0)
        if not _is_flag(token):
            positionals.append(token)
            continue
        flag, equals, value = token.partition("=")
        flag = flag if not flag.startswith("--") else "--" + flag[2:].replace("_", "-")
        inline = [value] if equals else None
        option = table.get(flag)
        if option is None:
            if flag in ("-h", "--help"):
                values["--help"] = []
                continue
            if ignore and flag.startswith(ignore):
                if inline is None and queue and not _is_flag(queue[0]):
                    queue.pop(0)
                continue
            raise ConfigError(f"{prog} has no option {flag!r}{_hint(flag, table, prog)}")
        taken = _take(option, flag, inline, queue)
        before = values.get(option.name, []) if option.kind == "append" else []
        values[option.name] = before + taken
    return positionals, values


def _is_flag(token: str) -> bool:
    return re.match(r"--?[A-Za-z]", token) is not None


def _take(option: Option, flag: str, inline: list[str] | None, queue: list[str]) -> list[str]:
    """Return the values of an option, taking them off the queue."""
    if option.kind == "flag":
        if inline is not None:
            raise ConfigError(f"{flag} takes no value; leave {inline[0]!r} out")
        return []
    if option.kind == "bool":
        if inline is None and queue and queue[0].lower() in _BOOLS:
            inline = [queue.pop(0)]
        word = inline[0] if inline else "true"
        if word.lower() not in _BOOLS:
            raise ConfigError(f"{flag} = {word!r} is neither true nor false")
        return [_BOOLS[word.lower()]]
    if option.kind == "many":
        taken = inline or []
        while inline is None and queue and not _is_flag(queue[0]):
            taken.append(queue.pop(0))
        parts = [part for text in taken for part in re.split(r"[,\s]+", text.strip("()[] "))]
        parts = [part for part in parts if part]
        return [] if parts == ["none"] else [_checked(option, flag, part) for part in parts]
    if inline is None:
        if not queue or queue[0].startswith("--"):
            raise ConfigError(f"{flag} needs a value{_wanted(option)}")
        inline = [queue.pop(0)]
    return [_checked(option, flag, inline[0])]


def _wanted(option: Option) -> str:
    return f": one of {', '.join(option.choices)}" if option.choices else ""


_NUMBERS = {int: "a whole number", float: "a number"}


def _checked(option: Option, flag: str, value: str) -> str:
    """Return a value as tyro wants it; raises ConfigError if it is none of the choices."""
    if option.choices:
        if value in option.choices:
            return value
        if option.optional and value.lower() == "none":
            return "None"
        known = list(dict.fromkeys((*option.choices, *(("none",) if option.optional else ()))))
        raise ConfigError(
            f"{flag} = {value!r} is not one of: {', '.join(known)}{suggest(value, known)}"
        )
    if option.optional and value.lower() == "none":
        return "None"
    hint = option.hint
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    if hint in _NUMBERS:
        try:
            hint(value)
        except ValueError:
            raise ConfigError(f"{flag} = {value!r} is not {_NUMBERS[hint]}") from None
    return value


def _hint(flag: str, known: Mapping[str, Option], prog: str) -> str:
    """Return a suggestion: the option of another group with this very name, or the nearest."""
    leaf = flag.lstrip("-").rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    if same:
        return f" (did you mean {same[0]!r}?)"
    near = suggest(flag, known)
    if near:
        return near
    leaves = {name.lstrip("-").rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(leaf, leaves, n=1)
    return f" (did you mean {leaves[close[0]]!r}?)" if close else f"; {prog} --help lists them"


def given(values: Mapping[str, Any], known: Sequence[Option], group: str) -> set[str]:
    """Return the fields of a group that were given on the command line."""
    return {o.path[-1] for o in known if o.name in values and o.path[0] == group}


def parse(
    cls: type[T],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    examples: Sequence[str],
    default: T | None = None,
    aliases: Mapping[str, str] | None = None,
) -> T:
    """Return the dataclass filled from arguments; prints help and exits for ``--help``.

    default: values of the options that are not given. Raises ConfigError for a wrong argument.
    """
    known = options(cls)
    positionals, values = scan(args, known, prog=prog, aliases=aliases)
    if "--help" in values:
        with _one_line():
            try:
                _tyro(cls, ["--help"], prog, description, default)
            finally:
                print("Examples:\n" + "\n".join(f"  {line}" for line in examples))
    places = [o for o in known if o.kind.startswith("positional")]
    unlimited = any(o.kind == "positionals" for o in places)
    if len(positionals) > len(places) and not unlimited:
        extra = positionals[len(places)]
        raise ConfigError(f"{prog}: unexpected argument {extra!r}; {prog} --help shows its use")
    required = [o for o in places if not o.optional and o.kind == "positional"]
    if default is None and len(positionals) < len(required):
        missing = required[len(positionals)].name.upper()
        raise ConfigError(f"{prog} needs {missing}; e.g. {examples[0]}")
    kinds = {o.name: o.kind for o in known}
    with _one_line():
        return _tyro(cls, [*positionals, *_again(values, kinds)], prog, description, default)


def _again(values: Mapping[str, list[str]], kinds: Mapping[str, str]) -> Iterator[str]:
    """Yield the options in the one form that tyro can't misread."""
    for name, taken in values.items():
        if kinds[name] == "flag":
            yield name
        elif kinds[name] == "many":
            yield from (name, *taken)
        else:
            yield from (f"{name}={value}" for value in taken)


def _tyro(cls: type[T], args: list[str], prog: str, description: str, default: T | None) -> T:
    chosen = {} if default is None else {"default": default}
    markers = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(cls, args=args, prog=prog, description=description, config=markers, **chosen)  # type: ignore[call-overload]


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn tyro's boxes of error text into the one line of a ConfigError."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│ ") for line in errors.getvalue().splitlines()]
        rule = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
        text = " ".join(line for line in lines[:rule] if line and line[0] not in "╭╰")
        raise ConfigError(text or "the arguments can't be read; see --help") from None
