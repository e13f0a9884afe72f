"""What an opened data set is: its native spec, codec and splits.

A split yields rows by position: `fetch(positions, epochs)` returns native tensors. Image rows are
uint8 (b, c, h, w), video rows uint8 (b, c, t, h, w); token rows int64 (b, t); vectors float32
(b, d), audio float32 (b, 1, n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from poiesis.errors import DataError
from poiesis.rng import mix
from poiesis.spec import Condition, Spec

__all__ = ["Codec", "DataSet", "Split", "TableCodec", "TensorSplit", "TextSplit", "WindowSplit"]


class Codec(Protocol):
    """Raw sample ↔ native tensor ↔ file ↔ preview picture. Saved in the run as JSON."""

    @property
    def suffix(self) -> str:
        """File ending of a written sample, e.g. ".png"."""
        ...

    @property
    def shown(self) -> int:
        """How many samples a preview shows well."""
        ...

    @property
    def spec(self) -> Spec:
        """The native spec."""
        ...

    def encode(self, raw: Any) -> Tensor:
        """Return the native tensor of one raw sample."""
        ...

    def decode(self, tensor: Tensor) -> Any:
        """Return the raw sample of one native tensor."""
        ...

    def write(self, raw: Any, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write one raw sample to a file, with the recipe that made it."""
        ...

    def preview(self, raws: list[Any], columns: int | None = None) -> Any:
        """Return a PIL picture of several raw samples, so many in a row where they are tiles."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return what `codec_from_json` needs."""
        ...


@runtime_checkable
class TableCodec(Codec, Protocol):
    """A codec of which many samples make one file, a row each."""

    def write_table(
        self,
        raws: Sequence[Any],
        path: Path,
        recipe: dict[str, Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Write many raw samples, with their classes where there are, and the recipe of all."""
        ...


class Split(Protocol):
    """Rows by position."""

    def __len__(self) -> int: ...

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (native rows, conditions or None) at positions (b,), int64.

        Conditions are classes (b,) or captions (b, length), int64, attributes (b, k), float32, or
        pictures (b, c, h, w), uint8.

        epochs (b,): which pass over the data each row belongs to, where rows differ by pass.
        """
        ...


class TensorSplit:
    """Rows held in memory as one tensor."""

    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.x)

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows at `positions`."""
        # Eight times as fast as indexing, for rows of bytes.
        x = self.x.index_select(0, positions)
        return x, None if self.y is None else self.y[positions]


class TextSplit:
    """One stream of tokens, 1-D; cut into windows by `windows`."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return single tokens (b, 1)."""
        return self.tokens[positions].long().unsqueeze(1), None

    def windows(self, length: int) -> WindowSplit:
        """Return the windows of length + 1 tokens that overlap by one."""
        return WindowSplit(self.tokens, length)


class WindowSplit:
    """Windows of a token stream that predict each token once; shifted at random in each epoch."""

    def __init__(self, tokens: Tensor, length: int) -> None:
        if len(tokens) < length + 1:
            raise DataError(
                f"the text has {len(tokens)} tokens, fewer than one window of {length + 1}: "
                "use more text or a shorter --model.context"
            )
        self.tokens = tokens
        self.length = length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def fetch(
        self, positions: Tensor, epochs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return windows (b, length + 1), int64; without epochs they are disjoint, in order."""
        starts = positions * self.length
        if epochs is not None:
            for epoch in epochs.unique().tolist():
                starts[epochs == epoch] += mix("window", epoch) % self.length
        starts = starts.clamp(max=len(self.tokens) - self.length - 1)
        offsets = torch.arange(self.length + 1)
        return self.tokens[starts[:, None] + offsets].long(), None


@dataclass
class DataSet:
    """An opened data set."""

    name: str
    variant: str
    """The exact variant, named in every result, e.g. "mnist, Bernoulli-binarised once, seed 0"."""
    spec: Spec
    condition: Condition | None
    codec: Codec
    splits: dict[str, Any]
    """train, validation and test, of which test may be missing."""
    skipped: list[str] = field(default_factory=list)
    """Files left out by --skip-bad, each with its reason."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a run records: counts and hashes of the splits, origin."""
