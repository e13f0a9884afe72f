"""A picture of rows of two numbers: points over the data, and what a model makes of the plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Field", "plane"]

_SIDE, _LEFT, _BOTTOM, _TOP, _GAP, _SCALE = 3.4, 0.55, 0.45, 0.3, 0.2, 0.65
"""Inches: of a panel, beside, below, above and between them, and of a map's scale."""
_INK, _POINTS, _DATA = "#3a4552", "#d9480f", "#7fb2e0"
_RESOLUTION = 128
"""Values of a field along each axis."""
_CONTOURS = 9


@dataclass(frozen=True, kw_only=True)
class Field:
    """A function of the plane, drawn as a map of its own beside the points."""

    title: str
    unit: str
    """What the values are, beside their scale."""
    values: Callable[[np.ndarray], np.ndarray]
    """Takes rows (n, 2) in the user's units, returns values (n,)."""
    depth: float | None = None
    """How far below the highest value the scale ends; None: all of them but outliers."""


def plane(
    points: np.ndarray,
    *,
    limits: tuple[tuple[float, float], tuple[float, float]],
    columns: tuple[str, str],
    behind: np.ndarray | None = None,
    names: tuple[str, str] = ("samples", "data"),
    fields: tuple[Field, ...] = (),
) -> Image.Image:
    """Return points (n, 2) over those behind, and a map of each field with the points on it, RGB.

    limits: of the two axes; what lies beyond them is drawn on the edge. names: of both sets.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limits = _square(limits)
    clipped = np.stack([np.clip(points[:, k], *limits[k]) for k in (0, 1)])
    width = _LEFT + _SIDE + (_GAP + _SIDE + _SCALE) * len(fields) + (0 if fields else _GAP)
    height = _BOTTOM + _SIDE + _TOP
    figure = Figure(figsize=(width, height), dpi=100)

    def panel(left: float, wide: float = _SIDE) -> Any:
        return figure.add_axes((left / width, _BOTTOM / height, wide / width, _SIDE / height))

    first = panel(_LEFT)
    if behind is not None:
        # Large and pale: the data glow around points that hit them.
        x, y = (np.clip(behind[:, k], *limits[k]) for k in (0, 1))
        alpha = float(np.clip(60 / len(behind), 0.03, 0.5))
        first.scatter(x, y, s=60, color=_DATA, alpha=alpha, linewidths=0, zorder=1)
        first.set_title(f"over {names[1]}", fontsize=9, color=_DATA, loc="right")
    first.scatter(*clipped, s=_dot(points), color=_POINTS, alpha=0.8, linewidths=0, zorder=2)
    first.set_title(names[0], fontsize=9, color=_POINTS, loc="left")
    _frame(first, limits, columns[0])
    first.set_ylabel(columns[1][:24], fontsize=8, color=_INK)
    left = _LEFT + _SIDE + _GAP
    for field in fields:
        place = panel(left)
        _map(place, panel(left + _SIDE + 0.08, 0.1), field, limits)
        place.scatter(*clipped, s=2, color=_POINTS, alpha=0.55, linewidths=0)
        _frame(place, limits, columns[0])
        place.set_yticklabels([])
        left += _SIDE + _SCALE + _GAP
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _dot(points: np.ndarray) -> float:
    return max(3.0, 9 - len(points) / 150)


def _square(limits: tuple[tuple[float, float], tuple[float, float]]) -> Any:
    """Return limits of one length where they are near it: then lengths look alike both ways."""
    spans = [high - low for low, high in limits]
    if max(spans) > 2.5 * min(spans):
        return limits
    middle = [(low + high) / 2 for low, high in limits]
    return tuple((m - max(spans) / 2, m + max(spans) / 2) for m in middle)


def _map(place: Any, scale: Any, field: Field, limits: Any) -> None:
    """Draw a field in colour with contours, and its scale."""
    ticks = [np.linspace(low, high, _RESOLUTION) for low, high in limits]
    x, y = np.meshgrid(*ticks)
    z = field.values(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape).astype(float)
    finite = z[np.isfinite(z)]
    if not finite.size:
        place.set_title(f"{field.title}: not finite", fontsize=9, color=_INK, loc="left")
        scale.set_visible(False)
        return
    if field.depth is None:
        low, high = np.quantile(finite, [0.02, 0.98])
    else:
        low, high = finite.max() - field.depth, finite.max()
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    z = np.nan_to_num(z, nan=low, posinf=high, neginf=low).clip(low, high)
    levels = np.linspace(low, high, _CONTOURS)
    shown = place.imshow(
        z,
        origin="lower",
        extent=(*limits[0], *limits[1]),
        aspect="auto",
        cmap="Blues",
        # Paper at the low end; the darkest blue would hide contours.
        vmin=low,
        vmax=high + 0.25 * (high - low),
        interpolation="bilinear",
    )
    place.contour(x, y, z, levels=levels[1:-1], colors=_INK, linewidths=0.4, alpha=0.35)
    bar = place.figure.colorbar(shown, cax=scale)
    bar.outline.set_visible(False)
    bar.set_label(field.unit, fontsize=8, color=_INK)
    scale.set_ylim(low, high)
    scale.tick_params(labelsize=7, length=0, colors=_INK)
    place.set_title(field.title, fontsize=9, color=_INK, loc="left")


def _frame(place: Any, limits: Any, name: str) -> None:
    place.set_xlim(*limits[0])
    place.set_ylim(*limits[1])
    place.tick_params(labelsize=7, length=2, colors=_INK)
    place.set_xlabel(name[:24], fontsize=8, color=_INK)
    for spine in place.spines.values():
        spine.set_color("#c4ccd4")
        spine.set_linewidth(0.8)
