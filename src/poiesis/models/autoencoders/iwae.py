"""Importance weighted autoencoder: Burda, Grosse & Salakhutdinov, arXiv:1509.00519.

Shape letters: b batch, s importance samples, z latent dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.models.autoencoders.vae import VAE, log_normal
from poiesis.models.base import Batch, Loss, preset
from poiesis.spec import Grid, Spec

__all__ = ["IWAE"]


class IWAE(VAE):
    """Importance weighted autoencoder: a VAE trained on a tighter bound of the likelihood.

    Good at: a better likelihood than the VAE of the same networks, and codes that use more of
    their dimensions.

    Not good at: speed: the decoder runs once for each importance sample; sharp pictures.

    Cost: the encoder of a VAE, its decoder `samples` times; sampling as the VAE.

    Papers: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, arXiv:1509.00519;
    Tucker et al., Doubly Reparameterized Gradient Estimators, arXiv:1810.04152.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(VAE.Config):
        """Options of the importance weighted autoencoder."""

        samples: int = 5
        """Importance samples of the bound; 1 is the VAE's, without its closed form of the KL."""
        gradient: Literal["double", "plain"] = "double"
        """double: the encoder learns by the doubly reparameterised gradient, whose noise does not
        grow with the samples; plain: by the bound's own."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("samples", self.samples, low=1, high=10_000)
            for name, neutral in (("beta", 1.0), ("kl_warmup", 0), ("free_bits", 0.0)):
                # The bound holds no KL term of its own.
                check(name, getattr(self, name), low=neutral, high=neutral)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """As the VAE's; pictures in gray are learnt as bits, drawn anew whenever they are seen."""
        config = super().default(spec)
        gray = isinstance(spec, Grid) and config.likelihood == "bernoulli" and spec.levels > 2
        return dataclasses.replace(config, dynamic=gray)

    @preset
    @classmethod
    def paper(cls, spec: Spec) -> Any:
        """One stochastic layer of 50 units, two hidden layers of 200, 50 samples."""
        return cls.Config(
            network="mlp",
            widths=(200, 200),
            latent_dim=50,
            samples=50,
            gradient="plain",
            dynamic=isinstance(spec, Grid) and spec.levels > 2,
            batch_size=20,
        )

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the negative importance-weighted bound in nats (eq. 8) (b,)."""
        log_w, logs = self._log_weights(batch, self.config.samples)
        bound = log_w.logsumexp(1) - math.log(log_w.size(1))
        logs["bound"] = bound.detach()
        if self.config.gradient == "plain":
            return -bound, logs
        # The decoder's gradient is that of the bound. The encoder's, which comes by way of z alone,
        # has the weights squared (arXiv:1810.04152, eq. 8): the hook on z multiplies once more.
        weights = log_w.detach().softmax(1)
        surrogate = (weights * log_w).sum(1)
        return -(surrogate - surrogate.detach() + bound.detach()), logs

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative bound of as many samples as in training, then what the VAE says."""
        log_w, _ = self._log_weights(batch, self.config.samples)
        bound = log_w.logsumexp(1) - math.log(log_w.size(1))
        return {"negative_bound": -bound, **super().validate(batch)}

    def _log_weights(self, batch: Batch, s: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return log p(x, z) - log q(z|x) of s draws of each sample, (b, s), and logs."""
        b, double = batch.size, self.config.gradient == "double"
        mean, log_variance = self._posterior(batch.x, batch.condition)
        eps = batch.randn(s, self.config.latent_dim)
        z = mean[:, None] + (0.5 * log_variance[:, None]).exp() * eps
        if double:
            # log q gets its gradient from z, none from its own mean and variance.
            mean, log_variance = mean.detach(), log_variance.detach()
        log_q = log_normal(z, mean[:, None], 0.5 * log_variance[:, None]).sum(2)
        log_p = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(2)
        rows = None if batch.condition is None else batch.condition.repeat_interleave(s)
        output = self.decoder(z.flatten(0, 1), rows)
        log_x = self._log_likelihood(batch.x.repeat_interleave(s, 0), output).reshape(b, s)
        log_w = log_x + log_p - log_q
        if double and z.requires_grad:
            weights = log_w.detach().softmax(1)[..., None]
            z.register_hook(lambda gradient: weights * gradient)
        return log_w, {"reconstruction": -log_x.detach().mean(1)}
