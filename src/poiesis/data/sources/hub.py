"""Data sets of the Hugging Face hub, through the `datasets` library: ``hf:OWNER/NAME[:CONFIG]``."""

from __future__ import annotations

from typing import Any

from poiesis.data.config import DataConfig
from poiesis.data.dataset import DataSet
from poiesis.data.sources.images import PARTS, Found, open_parts
from poiesis.data.sources.texts import assemble_text
from poiesis.errors import DataError, MissingDependency
from poiesis.files import read_bytes

__all__ = ["open_hub"]


def open_hub(config: DataConfig) -> DataSet:
    """Return the images or texts of a set of the hub; the columns are found by their type.

    The first image column and the first class column are used, otherwise the first column of
    strings (one named "text" before others), whose rows are joined by newlines.
    """
    owner_name, _, variant = config.source.removeprefix("hf:").partition(":")
    if owner_name.count("/") != 1 or not all(owner_name.split("/")):
        raise DataError(
            f"{config.source!r} is not of the form hf:OWNER/NAME or hf:OWNER/NAME:CONFIG"
        )
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise MissingDependency("datasets", "hub", f"the source {config.source!r}") from None
    try:
        loaded: Any = datasets.load_dataset(owner_name, variant or None)
    except Exception as error:  # network, name and format errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{config.source}: can't be loaded ({reason}); check name and network"
        ) from None
    parts = {PARTS[key.lower()]: rows for key, rows in loaded.items() if key.lower() in PARTS}
    if "train" not in parts:
        if len(loaded) != 1:
            raise DataError(f"{config.source}: has no train part, only {', '.join(loaded)}")
        parts = {"train": next(iter(loaded.values()))}
    name = owner_name.replace("/", "-")
    features = next(iter(parts.values())).features
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    pictures = [column for column, kind in kinds.items() if kind == "Image"]
    if pictures:
        plain = datasets.Image(decode=False)
        columns = {p: rows.cast_column(pictures[0], plain) for p, rows in parts.items()}
        columns = columns if len(columns) > 1 else {"all": columns["train"]}
        labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        return _open_images(columns, pictures[0], labels[0] if labels else None, name, config)
    strings = [
        c for c, f in features.items() if getattr(f, "dtype", None) in ("string", "large_string")
    ]
    if not strings:
        raise DataError(f"{config.source}: has no column of images or strings, only {kinds}")
    column = "text" if "text" in strings else strings[0]
    texts = {part: "\n".join(row or "" for row in rows[column]) for part, rows in parts.items()}
    return assemble_text(name, texts, config, notes={"origin": config.source, "column": column})


def _open_images(
    parts: dict[str, Any], column: str, label: str | None, name: str, config: DataConfig
) -> DataSet:
    """Return the images of a column; rows are named ``part/number``."""

    def read(row: str) -> bytes:
        part, _, number = row.partition("/")
        cell = parts[part][int(number)][column]
        return cell["bytes"] if cell["bytes"] is not None else read_bytes(cell["path"])

    listed: dict[str, list[tuple[str, str]]] = {}
    for part, rows in parts.items():
        names = [""] * len(rows)
        if label is not None:
            known = rows.features[label].names
            names = [known[k] if k is not None and k >= 0 else "unlabelled" for k in rows[label]]
        listed[part] = [(f"{part}/{k}", names[k]) for k in range(len(rows))]
    found = Found(config.source, [row for rows in listed.values() for row, _ in rows], read)
    return open_parts(found, listed, name, config)
