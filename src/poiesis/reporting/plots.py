"""Curves as SVG that takes the colours and the font of the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["curve", "panels", "smooth"]

_INK = "#010203"
"""Stands for the page's text colour: replaced in the SVG by currentColor."""
_TRAIN, _HELD_OUT = "#3b82c4", "#e0803a"
_NULL, _BOUND = "#4a9d5b", "#d05454"
_LOG_RANGE = 30.0
"""Positive values that span more than this factor are drawn on a logarithmic axis."""

Points = Sequence[tuple[float, float]]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average without start-up bias; NaN and infinity are skipped.

    The bias correction is Adam's (Kingma & Ba 2014, 1412.6980, sec. 3). weight: in [0, 1).
    """
    average, total, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        out.append(average / total if total else math.nan)
    return out


def panels(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return quantity → train and validation → (step, value) points, from a run's metrics lines."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in metrics:
        for key, value in line.items():
            kind, _, name = key.partition("/")
            if name and name not in ("rate", "seconds") and isinstance(value, (int, float)):
                points = found.setdefault(name, {}).setdefault(kind, [])
                points.append((line["step"], float(value)))
    return found


def curve(
    title: str,
    train: Points = (),
    held_out: Points = (),
    *,
    looks: Points = (),
    null: float | None = None,
    bound: float | None = None,
) -> str:
    """Return an inline SVG of one quantity over the steps: training, smoothed, and held-out data.

    looks: of the health monitors. null, bound: lines at what real data give, and at what is taken
    for a fault. The vertical axis is logarithmic where positive values span more than a factor of
    30.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = [y for _, y in [*train, *held_out, *looks] if math.isfinite(y)]
    values += [level for level in (null, bound) if level is not None]
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 9,
        "axes.edgecolor": _INK,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(3.6, 2.2), layout="constrained")
        axes = figure.add_subplot()
        if train:
            steps, raw = zip(*train, strict=True)
            axes.plot(steps, raw, color=_TRAIN, alpha=0.25, linewidth=1)
            # Over about a twentieth of the run, so that the curve does not lag behind.
            window = max(2.0, len(raw) / 20)
            axes.plot(steps, smooth(raw, 1 - 1 / window), color=_TRAIN, linewidth=1.6)
        if held_out:
            steps, raw = zip(*held_out, strict=True)
            axes.plot(steps, raw, color=_HELD_OUT, linewidth=1.6, marker="o", markersize=2.5)
        if looks:
            axes.plot(*zip(*looks, strict=True), color=_TRAIN, linewidth=1.4, marker="o", ms=2.5)
        for level, colour, style in ((null, _NULL, "--"), (bound, _BOUND, ":")):
            if level is not None:
                axes.axhline(level, color=colour, linestyle=style, linewidth=1.2)
        if values and min(values) > 0 and max(values) / min(values) > _LOG_RANGE:
            axes.set_yscale("log")
        axes.set_title(title.replace("_", " "), loc="left", fontsize=10)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        return _inline(figure)


def _inline(figure: Any) -> str:
    """Return a figure as an SVG element for HTML, without document type, names or background."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # The page's own font, and no style rules that would reach beyond this picture.
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    return svg.replace(_INK, "currentColor")
