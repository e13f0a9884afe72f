"""What a report shows of a run's health: its alarms, and each number beside its null."""

from __future__ import annotations

import math
from typing import Any

from poiesis.reporting.plots import curve
from poiesis.runs import Run
from poiesis.training.alarms import FAIL, OVERFIT, SEPARATE

__all__ = ["health_section"]

_SHARES = {
    "coverage": "real samples with a generated one next to them",
    "recall": "real samples among the generated ones",
    "precision": "generated samples among real ones",
    "vendi": "different samples that they amount to",
    "variety": "the same, by values instead of features",
    "support": "the same, by near pairs (birthday test)",
}
"""Numbers whose null real data give; below a share `FAIL` of it something is lost."""
_LEVELS = {
    "ndb": ("bins that differ", 0.05, 0.15),
    "lost": ("real samples in bins drawn half as often or less", 0.0, None),
    "fooled": ("generated looks more real than real", 0.5, SEPARATE),
    "r_t": ("r_t, sign of D on training data", 0.0, 0.6),
    "overfit": ("r_v, D between training and held-out", 0.0, OVERFIT),
}
"""Numbers with an analytic null: title, null and threshold."""
_ENDS = {
    "_stretch": "largest singular value",
    "_moved": "weights moved since the look before",
    "_gradient": "root mean square of gradients",
}


def health_section(run: Run) -> dict[str, Any]:
    """Return the alarms, the number of looks, what they looked at and a curve of each number."""
    stored = run.read_json("health.json", {})
    nulls = stored.get("nulls", {})
    points: dict[str, list[tuple[float, float]]] = {}
    looks = 0
    for line in run.metrics():
        values = {k.removeprefix("health/"): v for k, v in line.items() if k.startswith("health/")}
        looks += bool(values)
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((line["step"], float(value)))
    curves = []
    for name, title in _SHARES.items():
        if name in points and name in nulls:
            null = nulls[name]["mean"]
            curves.append(curve(title, looks=points[name], null=null, bound=FAIL * null))
    for name, (title, null, bound) in _LEVELS.items():
        if name in points:
            curves.append(curve(title, looks=points[name], null=null, bound=bound))
    networks = [
        curve(f"{name.removesuffix(end)}: {title}", looks=points[name])
        for end, title in _ENDS.items()
        for name in sorted(points)
        if name.endswith(end)
    ]
    note = f"{looks} looks" if looks else ""
    if looks and stored.get("features"):
        note += f" at {stored['samples']} samples each, compared in {stored['features']}"
    alarms = [
        line["sentence"] + ("; training was sent back" if line["sent_back"] else "")
        for line in run.alarms()
    ]
    return {"alarms": alarms, "health": curves, "networks_health": networks, "looks": note}
