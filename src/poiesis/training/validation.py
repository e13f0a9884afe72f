"""Held-out data: what a model watches, averaged over rows it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

import torch

from poiesis import processes
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
        # Each process takes its part of a batch; of a last one too small for that, all of it.
        start, end = processes.share(len(where)) if len(where) >= processes.size() else (0, None)
        own, x = where[start:end], x[start:end]
        draws = Draws(
            ("validate", done),
            total=len(where),
            start=start,
            size=len(own),
            device=model.device,
        )
        batch = Batch(
            x=x,
            condition=model.condition_on(x, None if y is None else y[start:end], draws),
            index=own,
            draws=draws,
            size=len(own),
            training=False,
        )
        values = model.validate(batch if transform is None else transform(batch))
        if not values:
            break
        for name, value in values.items():
            times = 1 if end is not None else processes.size()
            sums[name] = sums.get(name, 0.0) + float(value.double().sum()) / times
        done += len(where)
    model.train(training)
    totals = torch.tensor(list(sums.values()), dtype=torch.float64)
    processes.sum_([totals])
    sums = dict(zip(sums, totals.tolist(), strict=True))
    return {name: total / done for name, total in sums.items()}
