"""Poiesis: every family of generative model, from your data to new data, judged honestly."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Threads that wait for one another by spinning slow training tenfold as soon as another process
# wants the same cores (0.20 s → 2.4 s a step, measured with two threads on two cores). Read once,
# when OpenMP is loaded with torch; whoever sets the variable keeps their choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_LAZY = {
    "compare": "poiesis.comparison",
    "evaluate": "poiesis.evaluation.protocol",
    "list_models": "poiesis.registry",
    "load": "poiesis.models.trained",
    "report": "poiesis.reporting.page",
    "sample": "poiesis.models.trained",
    "train": "poiesis.training.verb",
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'poiesis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
