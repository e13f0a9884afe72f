"""The Vendi score (Friedman & Dieng 2022, 2210.02410): how many different samples a set amounts to.

The exponential of the entropy of the eigenvalues of K/n, for a kernel K with ones on its diagonal:
n copies of one sample count as 1, n samples that have nothing in common as n (eq. 2).
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.distances import squared_distances
from poiesis.metrics.estimate import as_features

__all__ = ["vendi", "vendi_of_kernel"]

_WHOLE = 1e-6
"""How far from one a kernel's diagonal may be."""


def vendi_of_kernel(kernel: Tensor) -> float:
    """Return the Vendi score of a symmetric kernel (n, n) with ones on its diagonal, in [1, n].

    Raises DataError for another shape or diagonal.
    """
    if kernel.ndim != 2 or len(kernel) != kernel.shape[1] or not len(kernel):
        raise DataError(f"a kernel of shape {tuple(kernel.shape)} is not square")
    diagonal = kernel.diagonal()
    if float((diagonal - 1).abs().max()) > _WHOLE:
        raise DataError("a kernel for the Vendi score needs ones on its diagonal")
    return _of_spectrum(torch.linalg.eigvalsh(kernel.double() / len(kernel)))


def vendi(features: ArrayLike | Tensor, *, bandwidth: float | None = None) -> float:
    """Return the Vendi score of features (n, d), in [1, n].

    The kernel is the cosine of two rows or, with a bandwidth h in the features' unit,
    exp(-|x - y|² / (2 h²)). Deterministic, O(n² min(n, d)) for cosines and O(n³) else. Raises
    DataError for features that are not finite.
    """
    x = as_features(features, "given", least=1)
    check("bandwidth", bandwidth, low=0, open_low=True)
    if bandwidth is not None:
        return vendi_of_kernel((-squared_distances(x, x) / (2 * bandwidth**2)).exp())
    # A row of zeros has no direction: by itself it is like nothing else, but like its own kind.
    none = ~(x != 0).any(1)
    x = torch.cat((torch.nn.functional.normalize(x, dim=1), none[:, None].double()), 1)
    # x xᵀ and xᵀ x share their eigenvalues but for zeros.
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    return _of_spectrum(torch.linalg.eigvalsh(gram / len(x)))


def _of_spectrum(shares: Tensor) -> float:
    shares = shares[shares > 0]
    return float((-(shares * shares.log()).sum()).exp())
