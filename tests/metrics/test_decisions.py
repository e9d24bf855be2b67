"""Thresholds, calibration and paired decisions against scikit-learn, SciPy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.metrics import decisions
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.metrics.interval import resamples


def skilled(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1.2
    return labels, metrics.probabilities(np.round(logits, 1), "multiclass")


def test_youden_is_the_best_corner_of_the_roc() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, probs = skilled(300, 2)
    (limit,) = decisions.youden(labels, probs)
    false_alarms, hits, _ = sklearn.roc_curve(labels, probs[:, 1])
    sensitivity = decisions.sensitivity((limit,))(labels, probs)
    specificity = decisions.specificity((limit,))(labels, probs)
    assert sensitivity + specificity - 1 == pytest.approx((hits - false_alarms).max())
    assert limit not in probs[:, 1]  # between two values, not on one


def test_youden_of_several_classes_is_one_against_the_rest() -> None:
    labels, probs = skilled(200, 4)
    limits = decisions.youden(labels, probs)
    assert len(limits) == 4
    alone = np.stack([1 - probs[:, 2], probs[:, 2]], axis=1)
    assert decisions.youden((labels == 2).astype(np.int64), alone) == (limits[2],)
    found = [(probs[labels == k, k] >= limits[k]).mean() for k in range(4)]
    assert decisions.sensitivity(limits)(labels, probs) == pytest.approx(np.mean(found))
    spared = [(probs[labels != k, k] < limits[k]).mean() for k in range(4)]
    assert decisions.specificity(limits)(labels, probs) == pytest.approx(np.mean(spared))


def test_a_side_that_validation_lacks_gets_a_half() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    probs = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2]])
    assert decisions.youden(labels, probs) == pytest.approx((0.5, 0.5))
    assert decisions.youden(labels, probs)[0] == pytest.approx((0.8 + 0.2) / 2)


def test_calibration_error_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])
    labels = np.array([0, 1, 1, 1])
    # bins: two answers of 0.9, half right; one of 0.6, right; one of 1.0, right
    assert decisions.calibration_error(labels, probs) == pytest.approx((2 * 0.4 + 0.4) / 4)
    findings = np.array([[1], [0]])
    assert decisions.calibration_error(findings, np.array([[1.0], [1.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "metric",
    [
        decisions.sensitivity((0.3, 0.4, 0.5)),
        decisions.specificity((0.3, 0.4, 0.5)),
        decisions.calibration_error,
    ],
    ids=lambda metric: metric.name,
)
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_resampling_by_weights_equals_a_plain_loop(
    metric: metrics.Metric, kind: metrics.Kind
) -> None:
    labels, probs = skilled(60, 3)
    if kind == "multilabel":
        labels = np.eye(3, dtype=np.int64)[labels]
    counts = next(iter(resamples(60, 20, 1)))
    quick = metric.weighted(labels, probs, counts)
    for row, value in zip(counts, quick, strict=True):
        rows = np.repeat(np.arange(60), row.astype(int))
        assert metric(labels[rows], probs[rows]) == pytest.approx(value)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 11), (40, 40), (5, 6), (900, 700)])
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert decisions.mcnemar(gained, lost) == pytest.approx(expected)
