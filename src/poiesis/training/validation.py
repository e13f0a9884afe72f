"""Held-out data: what a model watches, averaged over rows it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

import torch

from poiesis.data.loader import Loader
from poiesis.models.base import Batch, GenerativeModel
from poiesis.rng import Draws

__all__ = ["held_out_means"]

ROWS = 1024
"""Rows looked at in one validation, spread evenly over the split."""


@torch.no_grad()
def held_out_means(
    model: GenerativeModel, loader: Loader, transform: Callable[[Batch], Batch] | None = None
) -> dict[str, float]:
    """Return the means of `model.validate` over the loader's rows; empty if it watches nothing.

    The noise is the same at every call, so that values differ by the weights alone.
    """
    sums: dict[str, float] = {}
    done = 0
    training = model.training
    model.eval()
    for x, y, where in loader.in_order(min(len(loader), ROWS)):
        batch = Batch(
            x=x,
            condition=y if model.condition is not None else None,
            index=where,
            draws=Draws(("validate", done), total=len(where), device=model.device),
            size=len(where),
            training=False,
        )
        values = model.validate(batch if transform is None else transform(batch))
        if not values:
            break
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.double().sum())
        done += len(where)
    model.train(training)
    return {name: total / done for name, total in sums.items()}
