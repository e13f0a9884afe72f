"""How good codes are: a linear probe, clusters against classes, sparsity, active units.

Shape letters: n samples, z dimensions of the code.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate, as_features, mean_estimate

__all__ = ["active_units", "cluster_purity", "hoyer_sparsity", "linear_probe"]


def linear_probe(
    codes: ArrayLike | Tensor, labels: ArrayLike | Tensor, *, folds: int = 5, seed: int = 0
) -> Estimate:
    """Return the accuracy, in [0, 1], of a linear classifier on codes it was not fitted to.

    Multinomial logistic regression on standardised codes (n, z), cross-validated over stratified
    folds, so each sample is judged once. Raises DataError for fewer than two classes, or a class
    with fewer samples than folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check("folds", folds, low=2)
    x, y = as_features(codes, "code").numpy(), _labels(labels)
    counts = np.unique(y, return_counts=True)[1]
    if len(x) != len(y) or len(counts) < 2 or counts.min() < folds:
        raise DataError(
            f"a linear probe of {folds} folds needs two classes with {folds} samples each, one "
            f"label a sample; got {len(x)} samples, {len(y)} labels, classes of {counts.tolist()}"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = np.asarray(cross_val_predict(probe, x, y, cv=splits))
    return mean_estimate(np.equal(found, y).astype(float), low=0, high=1)


def cluster_purity(
    codes: ArrayLike | Tensor, labels: ArrayLike | Tensor, *, clusters: int | None = None
) -> Estimate:
    """Return the share of samples, in [0, 1], that are of their cluster's most frequent class.

    k-means with ten starts on codes (n, z). clusters: default as many as there are classes.
    Raises DataError for fewer samples than clusters.
    """
    from sklearn.cluster import KMeans

    x, y = as_features(codes, "code").numpy(), _labels(labels)
    names, y = np.unique(y, return_inverse=True)
    k = len(names) if clusters is None else clusters
    check("clusters", k, low=1)
    if len(x) != len(y) or len(x) < k:
        raise DataError(f"{k} clusters need as many samples with labels; got {len(x)}, {len(y)}")
    member = KMeans(k, n_init=10, random_state=0).fit_predict(x)  # pyright: ignore
    table = np.zeros((k, len(names)), np.int64)
    np.add.at(table, (member, y), 1)
    return mean_estimate((table.argmax(1)[member] == y).astype(float), low=0, high=1)


def hoyer_sparsity(codes: ArrayLike | Tensor) -> Estimate:
    """Return the mean sparsity of codes (n, z): 0 if all values are as large, 1 if one is not zero.

    (sqrt(z) - |x|₁ / |x|₂) / (sqrt(z) - 1) (Hoyer, JMLR 5 (2004) 1457-1469, eq. 4); a code of
    zeros counts as 1. Raises DataError for codes of one dimension.
    """
    x = as_features(codes, "code", least=1)
    root = x.shape[1] ** 0.5
    if x.shape[1] < 2:
        raise DataError("codes of one dimension are neither sparse nor dense")
    ratio = x.abs().sum(1) / x.norm(dim=1).clamp(min=1e-300)
    return mean_estimate(((root - ratio) / (root - 1)).clamp(0, 1), low=0, high=1)


def active_units(means: ArrayLike | Tensor, *, threshold: float = 0.01) -> int:
    """Return how many dimensions of posterior means (n, z) vary over the data by more than this.

    The variance over samples is compared (Burda et al., arXiv:1509.00519, section 5.2).
    """
    return int((as_features(means, "code").var(0) > threshold).sum())


def _labels(labels: ArrayLike | Tensor) -> np.ndarray:
    return np.asarray(labels).reshape(-1)
