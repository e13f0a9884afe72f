"""Attributes of samples, several of which one may have: columns of 0 and 1 of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from poiesis.errors import DataError, suggest
from poiesis.files import Table, read_table

__all__ = ["attributes_of_files", "flags"]


def flags(table: Table, names: Sequence[str]) -> Tensor:
    """Return these columns as 0 and 1, float32 (n, k); -1 counts as 0.

    Raises DataError, naming row and column, for any other value.
    """
    out = []
    for name in names:
        if name not in table.columns:
            hint = suggest(name, table.columns) or f"; it has: {', '.join(table.columns)}"
            raise DataError(f"{table.where}: has no column {name!r}{hint}")
        column = table.columns[name]
        strange = np.flatnonzero(~np.isin(column, (-1.0, 0.0, 1.0)))
        if len(strange):
            row = int(strange[0])
            raise DataError(
                f"{table.where}: row {row + table.first}, column {name!r} is no attribute: its "
                "values are 0 or 1 (or -1 and 1)"
            )
        out.append(torch.from_numpy((column == 1).astype(np.float32)))
    return torch.stack(out, 1)


def attributes_of_files(path: str, files: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return the attributes of files (n, k) and their names, from a table about these files.

    Its first column holds names, or paths below the set's folder. Raises DataError for a file that
    it does not name.
    """
    first = next(iter(read_table(path).columns))
    table = read_table(path, as_words=first)
    names = [name for name in table.columns if name != first]
    if not names:
        raise DataError(f"{path}: has no column beside {first!r}; give one for each attribute")
    values = flags(table, names)
    places = {cell: place for place, cell in enumerate(table.kept or [])}
    rows = []
    for file in files:
        place = places.get(file, places.get(PurePosixPath(file).name))
        if place is None:
            raise DataError(f"{path}: says nothing of the file {file!r}; add a row for it")
        rows.append(place)
    return values[rows], tuple(names)
