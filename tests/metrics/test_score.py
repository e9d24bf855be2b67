"""Metrics against scikit-learn, and intervals against a plain loop."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lorkd_deploy.errors import ModelError
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.metrics.interval import bootstrap, resamples


def predicted(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits with some skill and many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, images, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1
    return labels, np.round(logits, 1).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_multiclass_scores_equal_scikit_learn(classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, logits = predicted(300, classes)
    probs = metrics.probabilities(logits, "multiclass")
    scores = metrics.score(labels, logits, "multiclass")
    given = probs[:, 1] if classes == 2 else probs
    assert scores == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(labels, probs.argmax(axis=1)),
            "auc": sklearn.roc_auc_score(labels, given, multi_class="ovr"),
            "balanced_accuracy": sklearn.balanced_accuracy_score(labels, probs.argmax(axis=1)),
        },
        abs=1e-12,
    )
    assert 0.3 < scores["accuracy"] < 0.95


def test_multilabel_scores_equal_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    labels = (rng.random((400, 14)) < 0.2).astype(np.int64)
    logits = rng.normal(size=labels.shape) + 2 * labels - 1
    answers = logits >= 0
    balanced = [sklearn.balanced_accuracy_score(labels[:, k], answers[:, k]) for k in range(14)]
    assert metrics.score(labels, logits, "multilabel") == pytest.approx(
        {
            "accuracy": (answers == labels).mean(),
            "auc": sklearn.roc_auc_score(labels, logits),
            "balanced_accuracy": np.mean(balanced),
        },
        abs=1e-12,
    )


def test_probabilities_survive_large_logits() -> None:
    large = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert metrics.probabilities(large, "multiclass").tolist() == [[1.0, 0.0, 0.0]]
    assert metrics.probabilities(large, "multilabel").tolist() == [[1.0, 0.0, 0.5]]


def test_logits_that_are_not_finite_are_refused() -> None:
    logits = np.zeros((3, 2))
    logits[1, 0] = np.nan
    with pytest.raises(ModelError, match="not finite") as caught:
        metrics.score(np.array([0, 1, 1]), logits, "multiclass")
    assert caught.value.where == "image 1"


def test_what_an_engine_gives_as_probabilities_has_to_be_finite_too() -> None:
    given = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    found = metrics.probabilities_given(given, "multiclass", raw=True)
    assert found.dtype == np.float64 and np.array_equal(found, given)
    logits = metrics.probabilities_given(given, "multiclass", raw=False)
    assert np.array_equal(logits, metrics.probabilities(given, "multiclass"))
    given[1, 0] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        metrics.probabilities_given(given, "multiclass", raw=True)


def test_majority_is_the_share_of_the_most_frequent_answer() -> None:
    assert metrics.majority(np.array([0, 1, 1, 1])) == 0.75
    assert metrics.majority(np.array([[0, 1], [0, 1], [0, 0], [1, 1]])) == 0.75


def test_a_class_that_the_labels_lack_is_left_out() -> None:
    labels, logits = predicted(100, 3)
    keep = labels != 0
    probs = metrics.probabilities(logits, "multiclass")[keep]
    labels = labels[keep]
    areas = [metrics.auc((labels == k).astype(int), np.stack([1 - p, p], 1)) for k, p in
             ((1, probs[:, 1]), (2, probs[:, 2]))]  # fmt: skip
    assert metrics.auc(labels, probs) == pytest.approx(np.mean(areas))
    recalls = [(probs[labels == k].argmax(axis=1) == k).mean() for k in (1, 2)]
    assert metrics.balanced_accuracy(labels, probs) == pytest.approx(np.mean(recalls))


def test_an_undefined_auc_is_left_out_of_the_scores() -> None:
    scores = metrics.score(np.zeros(5, np.int64), np.eye(5, 2), "multiclass")
    assert sorted(scores) == ["accuracy", "balanced_accuracy"]


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda metric: metric.name)
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_bootstrap_equals_a_plain_loop(metric: metrics.Metric, kind: metrics.Kind) -> None:
    labels, logits = predicted(120, 4)
    if kind == "multilabel":
        labels = np.eye(4, dtype=np.int64)[labels]
    probs = metrics.probabilities(logits, kind)
    interval = bootstrap(metric, labels, probs, n=50, seed=3)
    values = []
    for counts in np.concatenate(list(resamples(120, 50, 3))):
        rows = np.repeat(np.arange(120), counts.astype(int))
        assert len(rows) == 120
        values.append(metric(labels[rows], probs[rows]))
    assert interval.value == metric(labels, probs)
    expected = np.percentile(values, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("classes", [2, 5])
def test_kappa_equals_scikit_learns_resampled_too(classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, logits = predicted(200, classes)
    probs, answers = metrics.probabilities(logits, "multiclass"), logits.argmax(axis=1)
    counts = np.random.default_rng(0).integers(0, 4, (3, 200))
    expected = [
        sklearn.cohen_kappa_score(labels, answers, weights="quadratic", sample_weight=row)
        for row in counts
    ]
    assert metrics.kappa.weighted(labels, probs, counts.astype(float)) == pytest.approx(expected)


def test_bootstrap_covers_the_binomial_interval_and_follows_its_seed() -> None:
    labels = np.arange(400) % 2
    probs = np.eye(2)[np.where(np.arange(400) % 5 == 0, 1 - labels, labels)]
    interval = bootstrap(metrics.accuracy, labels, probs, n=2000)
    spread = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=0.006)
    assert interval == bootstrap(metrics.accuracy, labels, probs, n=2000)
    assert interval != bootstrap(metrics.accuracy, labels, probs, n=2000, seed=1)


def test_auc_bootstrap_of_a_blood_sized_test_set_is_fast() -> None:
    labels, logits = predicted(3421, 8)
    probs = metrics.probabilities(logits, "multiclass")
    began = time.process_time()  # the machine may be busy: this process's own time
    interval = bootstrap(metrics.auc, labels, probs)
    assert time.process_time() - began < 5
    assert interval.low < interval.value < interval.high
