"""What scikit-learn's detectors make of the pixels: the scores to beat, fitted to the same images.

Shape letters: n images, d pixel values in [0, 1].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BASELINES", "SIDE", "baseline_scores", "pixel_rows"]

Values = NDArray[np.float64]

SIDE = 32
"""Larger images are averaged down to at most this many pixels a side: a kernel machine on more
would take hours."""


def pixel_rows(images: Tensor, levels: int) -> NDArray[np.float32]:
    """Return native images (n, c, h, w) as rows (n, d) in [0, 1], averaged down to `SIDE`."""
    x = images.float() / (levels - 1)
    size = [min(side, SIDE) for side in x.shape[2:]]
    if size != list(x.shape[2:]):
        x = F.interpolate(x, size=size, mode="area")
    return x.flatten(1).numpy()


def _pca(train: Values, components: int | None, seed: int) -> Callable[[Values], Values]:
    """Squared error of a reconstruction from as many components as the model's code has values."""
    from sklearn.decomposition import PCA

    most = min(train.shape)
    kept: float | int = 0.95 if components is None or components >= most else components
    fitted = PCA(kept, svd_solver="full").fit(train)
    return lambda x: np.square(x - fitted.inverse_transform(fitted.transform(x))).sum(1)


def _svm(train: Values, components: int | None, seed: int) -> Callable[[Values], Values]:
    from sklearn.svm import OneClassSVM

    fitted = OneClassSVM(kernel="rbf", gamma="scale", nu=0.1).fit(train)
    return lambda x: -fitted.decision_function(x)


def _knn(train: Values, components: int | None, seed: int) -> Callable[[Values], Values]:
    """Mean distance to the 5 nearest training images."""
    from sklearn.neighbors import NearestNeighbors

    fitted = NearestNeighbors(n_neighbors=min(5, len(train)), algorithm="brute").fit(train)
    return lambda x: fitted.kneighbors(x)[0].mean(1)


def _forest(train: Values, components: int | None, seed: int) -> Callable[[Values], Values]:
    from sklearn.ensemble import IsolationForest

    fitted = IsolationForest(n_estimators=200, random_state=seed % 2**32).fit(train)
    return lambda x: -fitted.score_samples(x)


def _ecod(train: Values, components: int | None, seed: int) -> Callable[[Values], Values]:
    from pyod.models.ecod import ECOD  # type: ignore[import-not-found]

    fitted: Any = ECOD().fit(train)
    return lambda x: np.asarray(fitted.decision_function(x))


BASELINES: dict[str, tuple[str, Callable[..., Callable[[Values], Values]]]] = {
    "pca": ("error of as many principal components as the code has values", _pca),
    "one-class-svm": ("scikit-learn's, RBF kernel, nu 0.1", _svm),
    "knn": ("mean distance of the pixels to the 5 nearest training images", _knn),
    "isolation-forest": ("scikit-learn's, 200 trees", _forest),
    "pyod-ecod": ("pyod's ECOD", _ecod),
}
"""Name → what it is, and fit(training rows, components, seed) → score."""


def baseline_scores(
    train: Any, held_out: Any, inputs: Any, *, components: int | None, seed: int = 0
) -> Iterator[tuple[str, Values | None, Values | None]]:
    """Yield (name, scores of the held-out rows, of the input rows); None where pyod is missing."""
    for name, (_, fit) in BASELINES.items():
        if name.startswith("pyod") and importlib.util.find_spec("pyod") is None:
            yield name, None, None
            continue
        score = fit(np.asarray(train, np.float64), components, seed)
        with torch.no_grad():
            yield name, score(np.asarray(held_out, np.float64)), score(np.asarray(inputs))
