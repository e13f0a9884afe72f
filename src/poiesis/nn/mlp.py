"""Dense networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import nn

from poiesis.nn.dropout import Dropout

__all__ = ["mlp"]


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    *,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return linear layers widths[0] → … → widths[-1], each but the last with what follows it.

    Input (b, widths[0]), output (b, widths[-1]). Between two layers: norm (given the width), then
    activation, then dropout.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        if i:
            if norm is not None:
                layers.append(norm(a))
            layers.append(activation())
            if dropout:
                layers.append(Dropout(dropout))
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)
