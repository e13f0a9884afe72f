"""Reduction: data to the few numbers of a model's code, as a table, and how good these are."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from poiesis.apply.inputs import Inputs, Progress, codes, open_inputs
from poiesis.errors import ConfigError, DataError
from poiesis.metrics.representation import (
    active_units,
    cluster_purity,
    hoyer_sparsity,
    linear_probe,
)
from poiesis.models.capabilities import require
from poiesis.models.trained import Trained, load
from poiesis.runs import write_atomic

__all__ = ["SUFFIXES", "Reduction", "reduce", "write_codes"]

SUFFIXES = (".csv", ".npz", ".parquet")


@dataclass(frozen=True)
class Reduction:
    """Codes (n, z) of the inputs, and numbers about them."""

    inputs: Inputs
    codes: Tensor
    numbers: dict[str, float]
    path: Path | None


def reduce(
    run: str | Path,
    source: str = "",
    *,
    out: str | Path | None = None,
    split: str = "test",
    limit: int | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Reduction:
    """Encode data with a trained model; write the codes and say what they are worth.

    source, split, limit: as in `open_inputs`. out: a .csv, .npz or .parquet file (the last needs
    pyarrow), written only if all went well. With known classes the numbers are the accuracy of a
    linear probe and the purity of k-means clusters; without, sparsity and active units alone.
    Raises CapabilityError for a model that can't encode, ConfigError for another ending of `out`.
    """
    if out is not None:
        _writer(Path(out))
    trained = load(run, checkpoint=checkpoint, device=device)
    require(trained.model, "encode")
    inputs = open_inputs(trained, source, split=split, limit=limit)
    found = codes(trained, inputs, batch_size=batch_size, progress=progress)
    numbers: dict[str, float] = {"dimensions": found.shape[1]}
    if len(found) > 1:
        numbers["active_units"] = active_units(found)
    if found.shape[1] > 1:
        numbers["hoyer_sparsity"] = hoyer_sparsity(found).value
    if inputs.labels is not None:
        try:
            numbers["linear_probe"] = linear_probe(found, inputs.labels).value
            numbers["cluster_purity"] = cluster_purity(found, inputs.labels).value
        except DataError:
            pass  # too few of a class to say
    path = None
    if out is not None:
        path = write_codes(Path(out), found, inputs, trained)
    return Reduction(inputs, found, numbers, path)


def write_codes(path: Path, found: Tensor, inputs: Inputs, trained: Trained) -> Path:
    """Write codes (n, z) with the names and classes of their inputs."""
    _writer(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names: tuple[str, ...] = trained.condition.names if trained.condition is not None else ()
    labels = None
    if inputs.labels is not None:
        labels = [names[label] if names else str(label) for label in inputs.labels]
    columns = [f"z{number}" for number in range(found.shape[1])]
    if path.suffix == ".csv":
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["name", *(["class"] if labels else []), *columns])
        for number, row in enumerate(found.tolist()):
            label = [labels[number]] if labels else []
            table.writerow([inputs.names[number], *label, *(f"{v:.7g}" for v in row)])
        write_atomic(path, text.getvalue())
        return path
    data = io.BytesIO()
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"z": found.numpy(), "name": np.array(inputs.names)}
        if labels is not None:
            arrays["class"] = np.array(labels)
        np.savez_compressed(data, **arrays)
    else:
        import pyarrow
        import pyarrow.parquet

        content = {"name": inputs.names, **({"class": labels} if labels else {})}
        content |= {column: found[:, i].numpy() for i, column in enumerate(columns)}
        pyarrow.parquet.write_table(pyarrow.table(content), data)
    write_atomic(path, data.getvalue())
    return path


def _writer(path: Path) -> None:
    """Raise ConfigError if codes can't be written to such a file."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{str(path)!r} ends in none of {', '.join(SUFFIXES)}; name such a file")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError(
                "writing .parquet needs pyarrow: pip install 'poiesis[parquet]', or write .csv"
            ) from None
