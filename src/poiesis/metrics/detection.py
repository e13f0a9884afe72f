"""How well scores tell anomalies from normal samples, and what a score says about one sample.

Higher scores are more anomalous. Shape letters: n normal samples, a anomalies, m samples to
calibrate on.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate

__all__ = ["auroc", "average_precision", "conformal_p_values", "fpr_at_tpr", "threshold"]


def auroc(normal: ArrayLike, anomalous: ArrayLike) -> Estimate:
    """Return the area under the ROC curve, in [0, 1], of scores (n,) and (a,).

    The share of pairs in which the anomaly scores higher; ties count half. The parts are each
    sample's share of won pairs (DeLong et al., doi:10.2307/2531595). Raises DataError for scores
    that are none or not finite.
    """
    x, y = _scores(normal, "normal"), _scores(anomalous, "anomalous")
    # Of each anomaly the normal samples below it, and of each normal sample the anomalies above.
    won = _shares_below(x, y)
    lost = 1 - _shares_below(y, x)
    return Estimate(value=float(won.mean()), parts=(won, lost), low=0, high=1)


def average_precision(normal: ArrayLike, anomalous: ArrayLike) -> float:
    """Return the mean precision over the anomalies, in (0, 1]: at each the flagged share that is.

    The sum of precision times step of recall, without interpolation; equal scores are flagged
    together. Depends on the share of anomalies, which is the value of a score that knows nothing.
    """
    x, y = _scores(normal, "normal"), _scores(anomalous, "anomalous")
    levels, caught = np.unique(y, return_counts=True)
    above = len(y) - np.searchsorted(np.sort(y), levels, side="left")
    false = len(x) - np.searchsorted(np.sort(x), levels, side="left")
    return float((caught * above / (above + false)).sum() / len(y))


def fpr_at_tpr(normal: ArrayLike, anomalous: ArrayLike, *, tpr: float = 0.95) -> float:
    """Return the smallest share of normal samples flagged with this share of anomalies, in [0, 1].

    tpr: in (0, 1]; what scores as high as the last anomaly needed is flagged too.
    """
    check("tpr", tpr, low=0, high=1, open_low=True)
    x, y = _scores(normal, "normal"), _scores(anomalous, "anomalous")
    needed = math.ceil(tpr * len(y) - 1e-9)
    return float((x >= np.sort(y)[len(y) - needed]).mean())


def conformal_p_values(scores: ArrayLike, calibration: ArrayLike) -> np.ndarray:
    """Return (1 + number of calibration scores as high) / (m + 1) of each score, in (0, 1].

    For a normal sample that is exchangeable with the m calibration samples, the p-value is at most
    alpha with a probability of at most alpha, whatever the score is (Vovk, Gammerman & Shafer,
    Algorithmic Learning in a Random World, 2005, prop. 2.8).
    """
    x, known = _scores(scores, "input"), np.sort(_scores(calibration, "calibration"))
    return (1 + len(known) - np.searchsorted(known, x, side="left")) / (len(known) + 1)


def threshold(calibration: ArrayLike, fpr: float) -> float:
    """Return the score above which the conformal p-value is at most `fpr`.

    fpr: in (0, 1). Raises DataError for too few calibration scores: m of them can't say less than
    1 / (m + 1).
    """
    check("fpr", fpr, low=0, high=1, open_low=True)
    known = np.sort(_scores(calibration, "calibration"))
    flagged = math.floor(fpr * (len(known) + 1) + 1e-9)
    if not flagged:
        raise DataError(
            f"{len(known)} held-out normal samples can't tell a false-positive rate of {fpr:g}; "
            f"hold out {math.ceil(1 / fpr - 1 - 1e-9)} or more, or ask for "
            f"{1 / (len(known) + 1):.3g} or more"
        )
    return float(known[len(known) - flagged]) if flagged <= len(known) else -math.inf


def _shares_below(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the share of x below each of y, equal ones counted half."""
    known = np.sort(x)
    low, high = (np.searchsorted(known, y, side=side) for side in ("left", "right"))
    return (low + high) / 2 / len(x)


def _scores(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(array) or not np.isfinite(array).all():
        raise DataError(f"{len(array)} {name} scores: need at least one, and finite ones")
    return array
