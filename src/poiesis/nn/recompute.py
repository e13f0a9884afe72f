"""Parts of a network whose features are computed again on the way back (arXiv 1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from poiesis.rng import replayed

__all__ = ["recomputed"]


def recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return function(*args), keeping its arguments alone for its gradients.

    It runs once more in the backward pass, with the dropout of the first time: about a third more
    time for a step, for memory that no longer grows with what lies inside.
    """

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), replayed()

    out: Any = checkpoint(function, *args, use_reentrant=False, context_fn=contexts)
    return out
