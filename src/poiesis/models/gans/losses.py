"""Adversarial losses on logits, one value per sample, in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["non_saturating_discriminator", "non_saturating_generator"]


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return -log D(real) - log(1 - D(fake)) (arXiv:1406.2661, eq. 1); logits and loss (b,)."""
    return F.softplus(-real.float()) + F.softplus(fake.float())


def non_saturating_generator(fake: Tensor) -> Tensor:
    """Return -log D(fake) (arXiv:1406.2661, section 3); logits and loss (b,)."""
    return F.softplus(-fake.float())
