"""Poiesis: every family of generative model, from your data to new data, judged honestly."""

from __future__ import annotations

import importlib
from typing import Any

from poiesis.machine import choose_waiting

# Before anything loads torch.
choose_waiting()

__version__ = "0.1.0"

_LAZY = {
    "compare": "poiesis.comparison",
    "compress": "poiesis.apply.compress",
    "decompress": "poiesis.apply.compress",
    "denoise": "poiesis.apply.denoise",
    "detect": "poiesis.apply.detect",
    "edit": "poiesis.apply.edit",
    "evaluate": "poiesis.evaluation.protocol",
    "export": "poiesis.interop.frame",
    "import_": "poiesis.interop.frame",
    "inpaint": "poiesis.apply.edit",
    "latent": "poiesis.apply.latent.space",
    "list_models": "poiesis.registry",
    "load": "poiesis.models.trained",
    "reduce": "poiesis.apply.reduce",
    "report": "poiesis.reporting.page",
    "sample": "poiesis.models.samples",
    "train": "poiesis.training.verb",
    "translate": "poiesis.apply.translate",
    "upscale": "poiesis.apply.translate",
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'poiesis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
