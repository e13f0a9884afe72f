"""Dense networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["mlp"]


def mlp(
    widths: Sequence[int], activation: Callable[[], nn.Module], *, dropout: float = 0.0
) -> nn.Sequential:
    """Return linear layers widths[0] → … → widths[-1], activation (and dropout) between them.

    Input (b, widths[0]), output (b, widths[-1]); nothing follows the last layer.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        if i:
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)
