"""What a label is to a network: a row of a table."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LabelEmbedding", "rows"]


def rows(table: Tensor, label: Tensor) -> Tensor:
    """Return rows (b, width) of a table (k, width).

    label: classes, int64 (b,), or attributes, float (b, k), whose rows are added up.
    """
    return label @ table if label.is_floating_point() else F.embedding(label, table)


class LabelEmbedding(nn.Embedding):
    """Rows of a learned table, by class or attribute."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (b, width) of classes (b,) or attributes (b, k)."""
        return rows(self.weight, input)
