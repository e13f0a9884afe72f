"""What one sample is: the shape and value range of the tensor that a model learns.

A data set has a native spec (an image set: integer levels). A model asks for a view of it (the
same images padded to 32 px in [-1, 1], or their pixels as tokens) and `poiesis.data.views`
converts both ways. Specs are plain values: they are stored in the run as JSON.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from poiesis.errors import SpecError, suggest

__all__ = [
    "Attributes",
    "Captions",
    "Classes",
    "Condition",
    "Domain",
    "Grid",
    "Picture",
    "Spec",
    "Tokens",
    "Vector",
    "from_json",
    "to_json",
]

Domain = Literal["levels", "unit", "signed", "bits", "real"]
"""Value range of a grid.

levels: integers 0…levels-1. unit: floats in [0, 1]. signed: floats in [-1, 1]. bits: floats that
are 0 or 1 (from more levels they are drawn: a level's share of the maximum is the probability of
a 1). real: unbounded floats.
"""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Images, audio and other regular grids, tensor shape (channels, *size)."""

    channels: int
    size: tuple[int, ...]
    domain: Domain = "levels"
    levels: int = 256

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.channels, *self.size)

    @property
    def dims(self) -> int:
        """Number of values in one sample."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        levels = "" if self.domain == "real" else f" ({self.levels} levels)"
        return f"grid {self.channels}x{size}, {self.domain}{levels}"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Sequences of integers 0…vocabulary-1.

    A stream is one endless text: a sample is a window of length + 1 tokens, of which the first is
    context only. Otherwise a sample is one whole sequence of exactly `length` tokens. A native
    stream spec, before a model chose its window, has length 0.
    """

    vocabulary: int
    length: int
    stream: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.length + 1,) if self.stream else (self.length,)

    @property
    def dims(self) -> int:
        """Number of tokens predicted in one sample."""
        return self.length

    def __str__(self) -> str:
        kind = "stream of " if self.stream else ""
        return f"{kind}tokens, vocabulary {self.vocabulary}, length {self.length or 'open'}"


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Plain feature vectors, tensor shape (features,)."""

    features: int
    domain: Domain = "real"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.features,)

    @property
    def dims(self) -> int:
        """Number of values in one sample."""
        return self.features

    def __str__(self) -> str:
        return f"vector of {self.features} features, {self.domain}"


@dataclass(frozen=True, kw_only=True)
class Classes:
    """A condition: one of `count` classes, an int64 tensor of shape (batch,)."""

    count: int
    names: tuple[str, ...] = ()

    @property
    def none(self) -> int:
        """The number that stands for "no class"."""
        return self.count

    def index(self, name: str) -> int:
        """Return the number of a class given by name or number; raises SpecError."""
        if name in self.names:
            return self.names.index(name)
        if name.isdigit() and int(name) < self.count:
            return int(name)
        known = ", ".join(self.names or map(str, range(self.count)))
        raise SpecError(f"no class {name!r}; the classes are: {known}")


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """A condition: which of some properties a sample has, float 0 or 1, shape (batch, count)."""

    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of attributes."""
        return len(self.names)

    def values(self, text: str) -> list[float]:
        """Return 1 for each attribute that the text names, separated by commas; else 0.

        "none" names none of them. Raises SpecError.
        """
        asked = [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]
        for name in asked:
            if name not in self.names:
                known = ", ".join(self.names)
                raise SpecError(
                    f"no attribute {name!r}{suggest(name, self.names)}; the attributes are: {known}"
                )
        return [float(name in asked) for name in self.names]

    def describe(self, values: Sequence[float]) -> str:
        """Return the names of the attributes whose value is above a half, or none."""
        held = [name for name, value in zip(self.names, values, strict=True) if value > 0.5]
        return ",".join(held) or "none"


@dataclass(frozen=True, kw_only=True)
class Captions:
    """A condition: a text of known words, an int64 tensor of shape (batch, length).

    Word i of `words` is token i + 1. Zeros fill up; nothing but zeros is "no caption".
    """

    none: ClassVar[int] = 0
    """The token that stands for "nothing here"."""
    names: ClassVar[tuple[str, ...]] = ()
    """Captions have no names; classes and attributes do."""

    words: tuple[str, ...]
    length: int
    """Most words of a caption."""
    examples: tuple[str, ...] = ()
    """Captions of held-out data, for samples that nobody asked for."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens, that of nothing included."""
        return len(self.words) + 1

    @staticmethod
    def split(text: str) -> list[str]:
        """Return the words of a text: letters and digits, in lower case."""
        return re.findall(r"\w+", text.lower())

    def index(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a caption, filled up; raises SpecError for words it can't take."""
        words = self.split(text)
        if len(words) > self.length:
            raise SpecError(
                f"the caption {text!r} has {len(words)} words; this model takes {self.length}"
            )
        for word in words:
            if word not in self.words:
                known = f"; the words are: {', '.join(self.words)}" if len(self.words) < 40 else ""
                hint = suggest(word, self.words) or known
                raise SpecError(f"no caption has the word {word!r}{hint}")
        tokens = [self.words.index(word) + 1 for word in words]
        return (*tokens, *[self.none] * (self.length - len(words)))

    def text(self, tokens: Iterable[int]) -> str:
        """Return the caption of tokens."""
        return " ".join(self.words[token - 1] for token in tokens if token != self.none)

    def in_turn(self, first: int, n: int) -> list[tuple[int, ...]]:
        """Return captions for samples first…first+n-1 that nobody asked for: each in turn."""
        examples = [self.index(text) for text in self.examples] or [(self.none,) * self.length]
        return [examples[number % len(examples)] for number in range(first, first + n)]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A condition: a picture to go by, a tensor of shape (batch, channels, *size).

    As data it is levels, as rows are. A model sees it in its own view, and may give it a form of
    its own (`GenerativeModel.condition_on`).
    """

    none: ClassVar[float] = 0.0
    """The value that, everywhere, stands for "no picture"."""
    names: ClassVar[tuple[str, ...]] = ()
    """Pictures have no names; classes and attributes do."""

    channels: int
    size: tuple[int, ...]
    """Height and width."""


Spec = Grid | Tokens | Vector
Condition = Classes | Attributes | Captions | Picture

_KINDS: dict[str, type] = {
    "grid": Grid,
    "tokens": Tokens,
    "vector": Vector,
    "classes": Classes,
    "attributes": Attributes,
    "captions": Captions,
    "picture": Picture,
}


def to_json(spec: Spec | Condition | None) -> dict[str, Any] | None:
    """Return a JSON-ready dict of a spec, with its kind."""
    if spec is None:
        return None
    kind = next(k for k, v in _KINDS.items() if v is type(spec))
    return {"kind": kind, **dataclasses.asdict(spec)}


def from_json(data: dict[str, Any] | None) -> Any:
    """Read back what `to_json` wrote; raises SpecError for an unknown kind."""
    if data is None:
        return None
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise SpecError(f"unknown spec kind {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
