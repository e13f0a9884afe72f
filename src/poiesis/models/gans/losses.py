"""Adversarial losses on logits, one value per sample, in float32.

All logits and losses have shape (b,); higher logits are more real. A configuration names a loss of
`LOSSES`, or one of the user's by import path (`resolve`), and any loss goes with any network.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.errors import ConfigError, suggest

__all__ = ["LOSSES", "AdversarialLoss", "check_name", "resolve"]


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """What the discriminator and what the generator minimise.

    discriminator: (real, fake) → loss. Unless it is paired, either may be None, which leaves that
    term out. generator: (fake, real) → loss; real is None unless it is paired.
    """

    discriminator: Callable[[Tensor | None, Tensor | None], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    paired: bool = False
    """Only differences of a real and a fake logit count; both are needed, for the generator too."""
    boundary: float | None = None
    """The discriminator calls a sample real where its logit is above; None where it draws no line
    between single samples."""
    log_ratio: bool = False
    """At their optimum, logits are the log-ratio of the densities of real and fake, up to a sum."""


def _apart(
    real_term: Callable[[Tensor], Tensor], fake_term: Callable[[Tensor], Tensor]
) -> Callable[[Tensor | None, Tensor | None], Tensor]:
    """Return the discriminator's loss that is a sum of a real and a fake term."""

    def discriminator(real: Tensor | None, fake: Tensor | None) -> Tensor:
        terms = []
        if real is not None:
            terms.append(real_term(real.float()))
        if fake is not None:
            terms.append(fake_term(fake.float()))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    return discriminator


_cross_entropy = _apart(lambda real: F.softplus(-real), F.softplus)

LOSSES: dict[str, AdversarialLoss] = {
    # -log D(x) - log(1 - D(G(z))) with D the sigmoid of the logit; G: log(1 - D(G(z))), whose
    # gradient vanishes where D is sure (arXiv:1406.2661, eq. 1).
    "minimax": AdversarialLoss(
        discriminator=_cross_entropy,
        generator=lambda fake, real: -F.softplus(fake.float()),
        boundary=0.0,
        log_ratio=True,
    ),
    # The same D; G: -log D(G(z)) (section 3 there).
    "non-saturating": AdversarialLoss(
        discriminator=_cross_entropy,
        generator=lambda fake, real: F.softplus(-fake.float()),
        boundary=0.0,
        log_ratio=True,
    ),
    # Half the squared distance from 1 for real, from 0 for fake (arXiv:1611.04076, eq. 9).
    "least-squares": AdversarialLoss(
        discriminator=_apart(lambda real: (real - 1).square() / 2, lambda fake: fake.square() / 2),
        generator=lambda fake, real: (fake.float() - 1).square() / 2,
        boundary=0.5,
    ),
    # The mean of label times score, labels -1 for real and 1 for fake (arXiv:1701.07875, eq. 3).
    "wasserstein": AdversarialLoss(
        discriminator=_apart(torch.neg, lambda fake: fake),
        generator=lambda fake, real: -fake.float(),
    ),
    # Only samples on the wrong side of a margin of 1 count (arXiv:1705.02894).
    "hinge": AdversarialLoss(
        discriminator=_apart(lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake)),
        generator=lambda fake, real: -fake.float(),
        boundary=0.0,
    ),
    # Cross-entropy of telling which of two samples is real (arXiv:1807.00734; for pictures
    # arXiv:2501.05441).
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(_given(fake) - _given(real)),
        generator=lambda fake, real: F.softplus(_given(real) - fake.float()),
        paired=True,
        log_ratio=True,
    ),
}


def _given(logit: Tensor | None) -> Tensor:
    assert logit is not None, "a paired loss needs real and fake logits"
    return logit.float()


_PATH = re.compile(r"\w+(\.\w+)*:\w+")


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a listed loss or looks like ``package.module:NAME``."""
    if name not in LOSSES and not _PATH.fullmatch(name):
        hint = suggest(name, LOSSES) or f"; known: {', '.join(LOSSES)}"
        raise ConfigError(
            f"no loss named {name!r}{hint}, or the import path package.module:NAME of your own"
        )


def resolve(name: str) -> AdversarialLoss:
    """Return a listed loss or import the user's ``package.module:NAME``; raises ConfigError."""
    check_name(name)
    if name in LOSSES:
        return LOSSES[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"loss = {name!r} can't be imported ({error}); install it, or name its folder in the "
            "environment variable PYTHONPATH"
        ) from None
    if not isinstance(found, AdversarialLoss):
        raise ConfigError(
            f"loss = {name!r} is {'nothing' if found is None else type(found).__name__}, not an "
            "AdversarialLoss of poiesis.models.gans.losses"
        )
    return found
