"""Densities over the latent codes of autoencoders that learn none: fitted after training.

Shape letters: n codes, k components, z latent dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.rng import Noise

__all__ = ["LatentDensity", "LatentSampling"]

_ROWS = 4096
"""Codes kept, and fitted to."""


@dataclass(frozen=True, kw_only=True)
class LatentSampling:
    """Which density over the codes of the training data samples are drawn from."""

    density: Literal["mixture", "normal"] = "mixture"
    """mixture: Gaussians with full covariance; normal: one of them."""
    components: int = 32
    """Gaussians of the mixture."""
    temperature: float = 1.0
    """Scale of the deviation from a component's mean."""

    def __post_init__(self) -> None:
        check("components", self.components, low=1, high=1024)
        check("temperature", self.temperature, low=0, high=100)


class LatentDensity(nn.Module):
    """Keeps codes of the training data, and fits a density to them when samples are asked for.

    Before there are any codes it draws standard normal ones.
    """

    codes: Tensor
    count: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(_ROWS, latent_dim))
        self.register_buffer("count", torch.tensor(0))
        self._fitted: tuple[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def rows(self) -> int:
        """How many codes to give to `keep`."""
        return len(self.codes)

    def keep(self, codes: Iterable[Tensor]) -> None:
        """Take batches of codes (b, z), `rows` in all at most, in place of those before."""
        filled = 0
        for rows in codes:
            self.codes[filled : filled + len(rows)] = rows
            filled += len(rows)
        self.codes[filled:] = 0
        self.count.fill_(filled)

    def draw(self, noise: Noise, options: LatentSampling) -> Tensor:
        """Return codes (n, z). Row i depends on its own noise alone."""
        n = int(self.count)
        choice, eps = noise.rand(1).double(), noise.randn(self.codes.size(1))
        if n < 2:
            return options.temperature * eps
        cdf, means, factors = self._fit(1 if options.density == "normal" else options.components)
        at = torch.searchsorted(cdf, choice[:, 0] * cdf[-1], right=True)
        return means[at] + options.temperature * torch.einsum("nij,nj->ni", factors[at], eps)

    def _fit(self, components: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return cumulative weights (k,), means (k, z), Cholesky factors (k, z, z); kept."""
        key = (components, self.codes.data_ptr(), self.codes._version)
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, self._fitted_mixture(components))
        return self._fitted[1]

    def _fitted_mixture(self, components: int) -> tuple[Tensor, Tensor, Tensor]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        codes = self.codes[: int(self.count)].double().cpu().numpy()
        mean, spread = codes.mean(0), codes.std(0) + 1e-6
        # A full covariance needs a few times as many codes as dimensions.
        most = max(1, len(codes) // (4 * codes.shape[1]))
        mixture = GaussianMixture(
            min(components, most),
            reg_covar=1e-4,
            init_params="k-means++",  # "kmeans" adds up in the order in which its threads finish
            max_iter=100,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit((codes - mean) / spread)
        assert mixture.covariances_ is not None
        factors = spread[:, None] * np.linalg.cholesky(mixture.covariances_)
        like = self.codes
        return (
            torch.as_tensor(mixture.weights_, device=like.device).cumsum(0),
            torch.as_tensor(mixture.means_ * spread + mean).to(like),
            torch.as_tensor(factors).to(like),
        )
