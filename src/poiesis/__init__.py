"""Poiesis: every family of generative model, from your data to new data, judged honestly."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Threads that wait for one another by spinning slow training about tenfold as soon as another
# process wants the same cores: ddpm on digits, two threads on two cores, 0.28 s a step against
# 2.4 to 3.3 s spinning (2 interleaved rounds). On a quiet machine spinning can be faster (once
# 0.09 s against 0.12 s). Read once, when OpenMP is loaded with torch; a value already set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_LAZY = {
    "compare": "poiesis.comparison",
    "compress": "poiesis.apply.compress",
    "decompress": "poiesis.apply.compress",
    "denoise": "poiesis.apply.denoise",
    "evaluate": "poiesis.evaluation.protocol",
    "list_models": "poiesis.registry",
    "load": "poiesis.models.trained",
    "reduce": "poiesis.apply.reduce",
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
