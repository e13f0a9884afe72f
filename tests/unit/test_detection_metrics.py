"""Detection metrics against scikit-learn, and the promise of conformal p-values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from poiesis.errors import ConfigError, DataError
from poiesis.metrics.detection import (
    auroc,
    average_precision,
    conformal_p_values,
    fpr_at_tpr,
    threshold,
)

# Few levels, so that many scores are equal.
SCORES = st.lists(st.integers(0, 12).map(lambda v: v / 4), min_size=1, max_size=40)


@given(SCORES, SCORES)
def test_as_scikit_learn_says(normal, anomalous):
    labels = [0] * len(normal) + [1] * len(anomalous)
    scores = normal + anomalous
    assert auroc(normal, anomalous).value == pytest.approx(roc_auc_score(labels, scores))
    wanted = average_precision_score(labels, scores)
    assert average_precision(normal, anomalous) == pytest.approx(wanted)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for share in (0.5, 0.95, 1.0):
        found = fpr_at_tpr(normal, anomalous, tpr=share)
        assert found == pytest.approx(fpr[tpr >= share - 1e-9].min())


def test_interval_of_auroc_covers_the_truth():
    # Normal scores with means one apart: the area is Phi(1 / sqrt(2)).
    truth, hits = 0.7602499, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        low, high = auroc(rng.normal(size=80), 1 + rng.normal(size=60)).interval(resamples=200)
        hits += low <= truth <= high
    assert 86 <= hits <= 100


def test_p_values_keep_their_promise_for_any_score():
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.exponential, lambda size: rng.integers(0, 5, size=size)):
        below = np.zeros(3)
        for _ in range(400):
            p = conformal_p_values(draw(size=50), draw(size=59))
            below += [(p <= alpha).mean() for alpha in (1 / 60, 0.05, 0.2)]
        assert (below / 400 <= np.array([1 / 60, 0.05, 0.2]) + 0.01).all()
    assert conformal_p_values([3, 1.5, 0], [1, 2]).tolist() == [1 / 3, 2 / 3, 1]


@given(SCORES, SCORES, st.floats(0.03, 0.9))
def test_above_the_threshold_is_what_has_a_small_p_value(scores, calibration, fpr):
    if fpr * (len(calibration) + 1) < 1:
        with pytest.raises(DataError, match="held-out normal samples"):
            threshold(calibration, fpr)
        return
    flagged = np.asarray(scores) > threshold(calibration, fpr)
    assert flagged.tolist() == (conformal_p_values(scores, calibration) <= fpr + 1e-12).tolist()


def test_what_is_refused():
    with pytest.raises(DataError, match="0 anomalous scores"):
        auroc([1.0], [])
    with pytest.raises(DataError, match="finite"):
        average_precision([1.0, np.nan], [2.0])
    with pytest.raises(ConfigError, match="tpr"):
        fpr_at_tpr([1.0], [2.0], tpr=0)
    with pytest.raises(DataError, match=r"hold out 19 or more, or ask for 0.0909 or more"):
        threshold(range(10), 0.05)
