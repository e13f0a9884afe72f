"""Vectors: rows of numbers in the user's units ↔ float32 features, standardised by column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.data.codecs.plane import Field, plane
from poiesis.data.provenance import write_sidecar
from poiesis.errors import DataError
from poiesis.spec import Vector

__all__ = ["VectorCodec"]

_SHOWN = 4
"""Columns of a preview."""
_DIGITS = 6
"""Digits behind the first of a column's spread that are written: float32 holds no more."""


@dataclass(frozen=True, kw_only=True)
class VectorCodec:
    """Rows of numbers; mean and spread are those of the training part's columns."""

    columns: tuple[str, ...]
    """Names."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Standard deviation; 1 for a constant column."""
    decimals: tuple[int, ...]
    """Digits behind the point that hold all of a column's values; samples are rounded to them."""
    label: str = ""
    """Name of the column with the class, which is no feature; empty without."""

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.columns, self.mean, self.std, self.decimals)}
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(lengths) > 1 or not self.columns or not finite or min(self.std) <= 0:
            raise ValueError("columns, mean, std and decimals don't fit each other")

    @classmethod
    def fit(cls, columns: Sequence[str], rows: np.ndarray, label: str = "") -> VectorCodec:
        """Return the codec that standardises float64 rows (n, d); raises DataError."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = rows.mean(0), rows.std(0)
        for name, spread in zip(columns, std, strict=True):
            if not np.isfinite(spread):
                raise DataError(f"the numbers of column {name!r} are too large; rescale them")
        # What rounding leaves of a constant is no spread.
        std = np.where(std <= 1e-12 * np.abs(mean), 1.0, std)
        return cls(
            columns=tuple(columns),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            decimals=tuple(map(_decimals, rows.T, std.tolist())),
            label=label,
        )

    @property
    def suffix(self) -> str:
        """A table with a header."""
        return ".csv"

    @property
    def shown(self) -> int:
        """Points that a preview shows well."""
        return 512

    @property
    def spec(self) -> Vector:
        """Standardised features."""
        return Vector(features=len(self.columns))

    def encode(self, raw: np.ndarray) -> Tensor:
        """Return rows (…, d) in the user's units as float32 features; raises DataError."""
        raw = np.asarray(raw, np.float64)
        if raw.shape[-1:] != (len(self.columns),) or not np.isfinite(raw).all():
            raise DataError(
                f"{raw.shape} values are not rows of {len(self.columns)} finite numbers"
            )
        scaled = (raw - np.array(self.mean)) / np.array(self.std)
        return torch.from_numpy(np.clip(scaled, -1e30, 1e30).astype(np.float32))

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Return features (…, d) in the user's units, float64, as exact as float32 can say."""
        if tensor.shape[-1:] != self.spec.shape:
            raise DataError(f"values of shape {tuple(tensor.shape)} are not {self.spec}")
        rows = tensor.detach().cpu().double().numpy() * np.array(self.std) + np.array(self.mean)
        for column, decimals in enumerate(self.decimals):
            rows[..., column] = np.round(rows[..., column], decimals) + 0.0  # no -0
        return rows

    def write(self, raw: np.ndarray, path: Path, recipe: dict[str, Any] | None = None) -> None:
        """Write a table of one row, and its recipe beside it."""
        self.write_table([raw], path, recipe)

    def write_table(
        self,
        raws: Sequence[np.ndarray],
        path: Path,
        recipe: dict[str, Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Write rows as one csv file, their classes as the last column, and the recipe beside."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*self.columns, *([self.label or "class"] if classes is not None else [])])
        for number, raw in enumerate(raws):
            cells: list[Any] = [
                value if decimals or abs(value) >= 2**53 else int(value)
                for decimals, value in zip(self.decimals, raw.tolist(), strict=True)
            ]
            table.writerow([*cells, *([classes[number]] if classes is not None else [])])
        Path(path).write_text(text.getvalue(), encoding="utf-8")
        if recipe is not None:
            write_sidecar(path, recipe)

    def preview(
        self,
        raws: Sequence[np.ndarray],
        columns: int | None = None,
        *,
        behind: Sequence[np.ndarray] | None = None,
        names: tuple[str, str] = ("samples", "data"),
        fields: Sequence[Field] = (),
    ) -> Image.Image:
        """Return scatter plots of the first four columns against each other, RGB.

        columns: not used, rows are no tiles. behind: other rows, drawn below; names: what the rows
        and those behind are called. fields: of two columns, maps to draw beside the points.
        """
        points, back = np.stack(raws), None if behind is None else np.stack(behind)
        limits = [_limits(self, back, i) for i in range(min(_SHOWN, len(self.columns)))]
        if len(self.columns) == 2:
            return plane(
                points,
                limits=(limits[0], limits[1]),
                columns=(self.columns[0], self.columns[1]),
                behind=back,
                names=names,
                fields=tuple(fields),
            )
        sets = [(points, "#d9480f", names[0])]
        if back is not None:
            sets.insert(0, (back, "#8a97a6", names[1]))
        return _scatter(self, sets, limits)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"kind": "vector", **fields}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VectorCodec:
        """Return the codec of these fields."""
        columns = {k: tuple(v) for k, v in fields.items() if k != "label"}
        return cls(**columns, label=str(fields["label"]))


def _decimals(column: np.ndarray, std: float) -> int:
    """Return the fewest digits behind the point that hold all values, or all that float32 does."""
    most = min(300, max(0, _DIGITS - math.floor(math.log10(std))))
    return next((d for d in range(most) if (np.round(column, d) == column).all()), most)


def _limits(codec: VectorCodec, behind: np.ndarray | None, i: int) -> tuple[float, float]:
    """Return what of column i is shown: all but the outermost 0.5% of the rows behind."""
    if behind is not None and len(behind) > 1:
        low, high = (float(v) for v in np.quantile(behind[:, i], [0.005, 0.995]))
    else:
        # Without data to compare with: the same for all samples.
        low, high = (codec.mean[i] + side * 2 * codec.std[i] for side in (-1, 1))
    margin = 0.12 * (high - low) or codec.std[i]
    return low - margin, high + margin


def _scatter(
    codec: VectorCodec,
    sets: Sequence[tuple[np.ndarray, str, str]],
    limits: Sequence[tuple[float, float]],
) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    d = len(limits)
    size = 4.6 if d == 1 else 2.1 * d
    figure = Figure(figsize=(size, size), dpi=100, layout="constrained")
    axes = figure.subplots(d, d, squeeze=False)
    for place in axes.flat:
        place.set_visible(False)
    # A matrix of plots, with histograms on its diagonal.
    for j, i in ((row, column) for row in range(d) for column in range(row + 1)):
        place = axes[j, i]
        place.set_visible(True)
        for values, colour, name in sets:
            x, y = (np.clip(values[:, k], *limits[k]) for k in (i, j))
            if i == j:
                bins = np.linspace(limits[i][0], limits[i][1], 33)
                place.hist(x, bins, density=True, color=colour, alpha=0.55, label=name)
                place.set_yticks([])
            else:
                dot = max(2.0, 9 - len(x) / 200)
                place.scatter(x, y, s=dot, color=colour, alpha=0.6, linewidths=0, label=name)
                place.set_ylim(*limits[j])
        place.set_xlim(*limits[i])
        place.tick_params(labelsize=7)
        if j == d - 1:
            place.set_xlabel(codec.columns[i][:24], fontsize=8)
        if i == 0 and i != j:
            place.set_ylabel(codec.columns[j][:24], fontsize=8)
    if len(sets) > 1:
        axes[0, 0].legend(fontsize=7, markerscale=2, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
