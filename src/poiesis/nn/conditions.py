"""What a denoising network is told beside the level of noise: a class, or a caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poiesis.nn.text_encoder import Text, TextEncoder

__all__ = ["told"]


def told(
    emb_be: Tensor,
    condition: Tensor | None,
    classes: nn.Embedding | None,
    captions: TextEncoder | None = None,
) -> tuple[Tensor, Text | None]:
    """Return levels as vectors (b, e) with the condition added, and captions for attention.

    condition: int64, classes (b,) or captions (b, length); None is none, for which the table of
    classes has its last row and captions are empty. A network reads one of the two, or neither.
    """
    if classes is not None:
        if condition is None:
            none = classes.num_embeddings - 1
            condition = torch.full((len(emb_be),), none, device=emb_be.device)
        return emb_be + classes(condition), None
    if captions is None:
        return emb_be, None
    if condition is None:
        condition = torch.zeros(len(emb_be), 0, dtype=torch.long, device=emb_be.device)
    text = captions(condition)
    return emb_be + text.whole, text
