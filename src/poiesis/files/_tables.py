"""Tables: csv, tsv, npy, npz, parquet to named columns of numbers; what is no number is counted."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from poiesis.errors import DataError, MissingDependency
from poiesis.files._arrays import parse_npy, read_npz
from poiesis.files._plain import MAX_FILE, bad, decode_text, read_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".npy", ".npz", ".parquet")
"""Endings of tables; .csv and .tsv may be compressed (.csv.gz)."""
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
"""Cells that stand for a value that is not there, in lower case."""
_ROWS = 4096


@dataclass(frozen=True)
class Words:
    """The cells of a column that are neither numbers nor missing: how many, and the first."""

    count: int
    row: int
    text: str


@dataclass
class Table:
    """Named columns of equal length, in the order of the file."""

    where: object
    columns: dict[str, np.ndarray]
    """Name → float64 (n,); NaN where a cell is missing or no number."""
    words: dict[str, Words] = field(default_factory=dict)
    kept: list[str] | None = None
    """The cells of the column that was asked for as words."""
    first: int = 0
    """Number of the first row, as people count it in such a file."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def is_table(name: str) -> bool:
    """Return whether a file name ends like a table's."""
    lower = name.lower()
    return lower.removesuffix(".gz").endswith((".csv", ".tsv")) or lower.endswith(TABLE_SUFFIXES)


def read_table(path: str | Path, *, as_words: str | None = None) -> Table:
    """Return the columns of a table file, by its ending.

    A csv or tsv file needs a header; the separator is whichever of , ; tab | its first line has
    most of. The columns of an npz are its 1-D arrays by name and those of its 2-D ones, name0
    name1 …; of an npy x0 x1 …. as_words: a column whose cells are kept as they are. Raises
    DataError, and MissingDependency for parquet without pyarrow.
    """
    lower = str(path).lower()
    if lower.endswith((".npy", ".npz")):
        arrays = (
            read_npz(path) if lower.endswith(".npz") else {"x": parse_npy(read_bytes(path), path)}
        )
        return _of_columns(path, _array_columns(path, arrays), as_words)
    if lower.endswith(".parquet"):
        return _of_columns(path, _parquet_columns(path), as_words)
    return _read_csv(path, as_words)


def _numbers(cells: Sequence[str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Return the numbers of some cells, NaN for others, and (place, text) of words among them."""
    try:
        return np.array(cells, dtype=np.float64), []
    except ValueError:
        pass
    values, words = np.full(len(cells), np.nan), []
    for place, cell in enumerate(cells):
        try:
            values[place] = float(cell)
        except ValueError:
            if cell.strip().lower() not in MISSING:
                words.append((place, cell.strip()))
    return values, words


def _check_names(path: object, names: Sequence[str]) -> None:
    unnamed = [place for place, name in enumerate(names, start=1) if not name]
    if unnamed:
        way = "name it, or leave it out (pandas writes one unless told index=False)"
        raise bad(path, f"column {unnamed[0]} has no name in the header", way)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise bad(path, f"two columns are called {twice[0]!r}", "rename one")


def _read_csv(path: str | Path, as_words: str | None) -> Table:
    text = decode_text(read_bytes(path), path).removeprefix("\ufeff")
    head = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=head.count))
    try:
        names = [cell.strip() for cell in next(rows, [])]
        if not any(names):
            raise bad(path, "has no header", "write the names of the columns into its first row")
        if not any(_numbers([name])[1] for name in names if name):
            raise bad(
                path,
                f"row 1 holds numbers ({head.strip()[:40]})",
                "put the column names above them",
            )
        _check_names(path, names)
        blocks: list[list[np.ndarray]] = [[] for _ in names]
        words: dict[str, Words] = {}
        kept: list[str] | None = [] if as_words in names else None
        for start, chunk in _chunks(path, rows, len(names)):
            for name, block, cells in zip(names, blocks, zip(*chunk, strict=True), strict=True):
                if name == as_words and kept is not None:
                    kept += [cell.strip() for cell in cells]
                    block.append(np.zeros(len(cells)))
                    continue
                values, odd = _numbers(cells)
                block.append(values)
                _note(words, name, odd, start)
    except csv.Error as error:
        raise bad(path, f"row {rows.line_num} can't be read ({error})", "mend it") from None
    columns = {
        name: np.concatenate(block) if block else np.zeros(0)
        for name, block in zip(names, blocks, strict=True)
    }
    return Table(path, columns, words, kept, first=2)


def _chunks(
    path: object, rows: Iterable[list[str]], width: int
) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield (number of the first, some rows) of equal width; rows are numbered from 2 on."""
    numbered = enumerate(rows, start=2)
    blank = None
    while batch := list(itertools.islice(numbered, _ROWS)):
        chunk = []
        for number, row in batch:
            if not row:
                blank = blank or number
                continue
            if blank is not None:
                raise bad(path, f"row {blank} is empty", "delete it, or fill it in")
            if len(row) != width:
                what = f"row {number} has {len(row)} cells, the header {width}"
                raise bad(path, what, "mend it; a cell that holds the separator needs quotes")
            chunk.append(row)
        if chunk:
            yield batch[0][0], chunk


def _note(words: dict[str, Words], name: str, odd: list[tuple[int, str]], start: int) -> None:
    if odd:
        before = words.get(name)
        place, text = odd[0]
        first = (start + place, text) if before is None else (before.row, before.text)
        words[name] = Words(len(odd) + (before.count if before else 0), *first)


def _of_columns(path: object, columns: dict[str, np.ndarray], as_words: str | None) -> Table:
    """Return the table of arrays (n,) of numbers, or of objects and strings that may be words."""
    if not columns:
        raise bad(path, "holds no columns", "give a table of numbers")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {n:,}" for name, n in lengths.items())
        raise bad(path, f"its columns differ in length ({shown})", "give one row of all to each")
    table = Table(path, {})
    for name, column in columns.items():
        if name == as_words:
            whole = column.dtype.kind == "f" and bool((column == np.rint(column)).all())
            cells = column.astype(np.int64) if whole else column
            table.kept = ["" if cell is None else str(cell) for cell in cells.tolist()]
            table.columns[name] = np.zeros(len(column))
        elif column.dtype.kind in "biuf":
            table.columns[name] = column.astype(np.float64)
        else:
            cells = ["" if cell is None else str(cell) for cell in column.tolist()]
            table.columns[name], odd = _numbers(cells)
            _note(table.words, name, odd, 0)
    return table


def _array_columns(path: object, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or array.dtype.kind not in "biufUS":
            what = (
                f"{name!r} is an array of {array.dtype} of shape {array.shape}, which is no table"
            )
            raise bad(path, what, "give numbers of shape (rows, columns)")
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8", "replace")
        parts = (
            {name: array}
            if array.ndim == 1
            else {f"{name}{place}": column for place, column in enumerate(array.T)}
        )
        if columns.keys() & parts.keys():
            raise bad(path, f"two columns are called {min(columns.keys() & parts)!r}", "rename one")
        columns |= parts
    return columns


def _parquet_columns(path: str | Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("pyarrow", "parquet", f"reading {path}") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        rows, wide = file.metadata.num_rows, file.metadata.num_columns
        if rows * max(1, wide) * 8 > MAX_FILE:
            raise bad(path, f"{rows:,} rows of {wide} columns are too many", "split it")
        table: Any = file.read()
        _check_names(path, table.column_names)
        return {
            name: column.to_numpy()
            if not pyarrow.types.is_dictionary(column.type)
            else np.array(column.to_pylist(), dtype=object)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise bad(path, f"is no whole parquet file ({reason})") from None
