"""The toys of `poiesis.data.toys` as data sets: made up when opened, the same each time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from poiesis.data.codecs import VectorCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.splits import Images, MemoryRows
from poiesis.data.sources.tables import fingerprint, standardised
from poiesis.data.toys import TOYS, Toy
from poiesis.errors import ConfigError

__all__ = ["OPENERS", "ORIGIN", "open_toy", "toy_of"]

ORIGIN = "made up by poiesis"
"""What such a set notes in place of a path; a file may be called ring.csv."""
_COLUMNS = ("x", "y")
_ROWS = {"train": 50_000, "test": 5_000}


def open_toy(name: str, config: DataConfig) -> DataSet:
    """Return a toy's rows, drawn with seed 0, as standardised vectors of two features."""
    for option in ("label", "attributes", "drop"):
        if getattr(config, option):
            raise ConfigError(f"data.{option} is for tables; {name} has its columns and classes")
    toy = TOYS[name]
    drawn = {part: toy.draw(rows, part, 0) for part, rows in _ROWS.items()}
    x = np.concatenate([rows for rows, _ in drawn.values()])
    found = Images(
        name,
        {
            part: MemoryRows(torch.from_numpy(rows), torch.from_numpy(label))
            for part, (rows, label) in drawn.items()
        },
        VectorCodec.fit(_COLUMNS, x),
        toy.classes,
        notes={"origin": ORIGIN, "what": toy.summary, "content": fingerprint(x)},
        rows="rows",
    )
    return standardised(found, config, toy.label)


def toy_of(data: DataSet) -> Toy | None:
    """Return the toy that a data set was drawn from, if it was."""
    return TOYS.get(data.name) if data.notes.get("origin") == ORIGIN else None


OPENERS: dict[str, Callable[[DataConfig], DataSet]] = {
    name: partial(open_toy, name) for name in TOYS
}
