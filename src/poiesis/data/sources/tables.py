"""Tables of numbers: csv, tsv, npy, npz and parquet files, a row a sample."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from poiesis.data.codecs import VectorCodec
from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.attributes import flags
from poiesis.data.sources.splits import Images, MemoryRows, assemble
from poiesis.errors import DataError, suggest
from poiesis.files import Table, read_table

__all__ = ["fingerprint", "open_table", "rows_of", "standardised"]

_FEWEST = 10
"""Rows from which there is one for each of training, validation and test."""
_MOST_CLASSES = 1000


def rows_of(
    table: Table, columns: Sequence[str], *, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (float64 rows (n, d) of these columns, their places in the table, what was left out).

    Raises DataError, naming row and column, for a value that is missing or no number, unless
    skip_bad says to leave such rows out; and, naming the columns, for those that hold words.
    """
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        hint = suggest(lacking[0], table.columns) or f"; it has: {', '.join(table.columns)}"
        raise DataError(f"{table.where}: has no column {lacking[0]!r}{hint}")
    words = [n for n in columns if n in table.words and 2 * table.words[n].count > len(table)]
    if words:
        what = "columns" if len(words) > 1 else "column"
        hold = "hold" if len(words) > 1 else "holds"
        way = f"leave out: --data.drop {shlex.quote(','.join(words))}"
        if table.kept is None:
            way += " (--data.label COLUMN takes one as the class)"
        raise DataError(
            f"{table.where}: the {what} {', '.join(words)} {hold} words, not numbers; {way}"
        )
    x = np.stack([table.columns[name] for name in columns], 1)
    whole = np.isfinite(x)
    skipped = []
    for place, name in enumerate(columns):
        bad = np.flatnonzero(~whole[:, place])
        if not len(bad):
            continue
        place, row = (int(bad[0]), place), int(bad[0]) + table.first
        what = "is empty" if np.isnan(x[place]) else f"is {x[place]}"
        if name in table.words and table.words[name].row == row:
            what = f"is {table.words[name].text[:40]!r}, which is no number"
        rest = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
        where = f"{table.where}: row {row}, column {name!r} {what}{rest}"
        if not skip_bad:
            drop = shlex.quote(name)
            raise DataError(
                f"{where}; mend it, use --skip-bad to leave out such rows, or --data.drop {drop}"
            )
        skipped.append(where)
    kept = np.flatnonzero(whole.all(1))
    return x[kept], kept, skipped


def open_table(path: Path, name: str, config: DataConfig) -> DataSet:
    """Return the rows of a table as vectors, standardised by the training part's columns.

    Raises DataError for columns of words, and for missing or odd values; see `rows_of`.
    """
    table = read_table(path, as_words=config.label)
    dropped = _listed(config.drop)
    attributes = _listed(config.attributes)
    if attributes and config.label:
        raise DataError(f"{path}: takes data.label or data.attributes as the condition, not both")
    for column in (*dropped, *attributes, *([config.label] if config.label else [])):
        if column not in table.columns:
            hint = suggest(column, table.columns) or f"; it has: {', '.join(table.columns)}"
            raise DataError(f"{path}: has no column {column!r}{hint}")
    condition = [*attributes, config.label]
    columns = [c for c in table.columns if c not in dropped and c not in condition]
    if not columns:
        raise DataError(f"{path}: no column is left to learn; drop fewer")
    x, kept, skipped = rows_of(table, columns, skip_bad=config.skip_bad)
    if len(x) < _FEWEST:
        raise DataError(f"{path}: has {len(x)} rows to learn from, fewer than {_FEWEST}; add some")
    y, classes = _classes(path, table, kept, config)
    if attributes:
        y = flags(table, attributes)[kept]
    steps = [] if not dropped else [f"{len(columns)} of {len(table.columns)} columns"]
    found = Images(
        name,
        {"all": MemoryRows(torch.from_numpy(x), y)},
        VectorCodec.fit(columns, x),
        classes,
        steps,
        skipped,
        {"origin": str(path), "columns": columns, "content": fingerprint(x)},
        rows="rows",
        attributes=tuple(attributes),
    )
    return standardised(found, config, config.label or "")


def standardised(found: Images, config: DataConfig, label: str) -> DataSet:
    """Return the data set of float64 rows as found, by the mean and spread of its training part.

    label: what the column of classes is called in files.
    """
    data = assemble(found, config)
    codec = VectorCodec.fit(found.codec.columns, data.splits["train"].x.numpy(), label)
    for split in data.splits.values():
        split.x = codec.encode(split.x.numpy())
    return dataclasses.replace(data, codec=codec)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def fingerprint(x: np.ndarray) -> str:
    """Return the hash of rows of numbers."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def _classes(
    path: Path, table: Table, kept: np.ndarray, config: DataConfig
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Return the class number of each kept row and the classes' names, if a column holds them."""
    if table.kept is None:
        return None, ()
    cells = [table.kept[row] for row in kept.tolist()]
    if "" in cells:
        row = int(kept[cells.index("")]) + table.first
        raise DataError(f"{path}: row {row}, column {config.label!r} is empty; give it a class")
    counts = Counter(cells)
    if not 2 <= len(counts) <= _MOST_CLASSES:
        what = f"column {config.label!r} has {len(counts):,} different values"
        raise DataError(f"{path}: {what}; a class column has 2 to {_MOST_CLASSES:,}")
    names = sorted(counts, key=_by_number)
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places[cell] for cell in cells]), tuple(names)


def _by_number(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
