"""Figures by subgroup, against fairlearn's, and the p-value of the largest gap."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.data import Attribute
from lorkd_deploy.profiling.scoring import TaskAnswers, score
from lorkd_deploy.profiling.subgroups import gaps

SEX = ("f", "m", "x")


def answers(gap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Attribute]]:
    """600 images of two classes; women's are answered worse by `gap`, those of 20 are few."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 600)
    codes = np.repeat([0, 1, 2, -1], [250, 300, 20, 30]).astype(np.int32)
    right = rng.random(600) < np.where(codes == 0, 0.9 - gap, 0.9)
    sure = rng.uniform(0.5, 1, 600)
    positive = np.where(right == (labels == 1), sure, 1 - sure)
    probabilities = np.stack([1 - positive, positive], axis=1)
    site = Attribute(("east", "west"), rng.integers(0, 2, 600).astype(np.int32))
    return labels, probabilities, {"sex": Attribute(SEX, codes), "site": site}


def test_each_figure_is_fairlearns() -> None:
    metrics = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

    labels, probabilities, attributes = answers(0.15)
    given = TaskAnswers("t", labels, {"e": probabilities}, {"e": (0.4,)}, attributes=attributes)
    found = score(given, "e")
    assert [(g.attribute, g.value, g.images) for g in found.subgroups[:3]] == [
        ("sex", "f", 250),
        ("sex", "m", 300),
        ("sex", "x", 20),
    ]
    assert found.subgroups[2].quality is None
    positive = probabilities[:, 1]
    for name, attribute in attributes.items():
        known = attribute.codes >= 0
        wanted = metrics.MetricFrame(
            metrics={
                "accuracy": lambda y, p: accuracy_score(y, p >= 0.5),
                "auc": roc_auc_score,
                "sensitivity": lambda y, p: recall_score(y, p >= 0.4),
                "specificity": lambda y, p: recall_score(y, p >= 0.4, pos_label=0),
            },
            y_true=labels[known],
            y_pred=positive[known],
            sensitive_features=np.array(attribute.values)[attribute.codes[known]],
        ).by_group
        for group in found.subgroups:
            if group.attribute == name and group.quality is not None:
                for metric in wanted.columns:
                    own = getattr(group.quality, metric)
                    assert own.value == pytest.approx(wanted.loc[group.value, metric]), metric
                    assert own.low <= own.value <= own.high
    sex = found.gaps[0]
    assert (sex.best, sex.worst) == ("m", "f") and sex.p < 0.01
    accuracy = {g.value: g.quality.accuracy.value for g in found.subgroups if g.quality}
    assert sex.accuracy == pytest.approx(accuracy["m"] - accuracy["f"])


def test_without_a_gap_the_p_value_is_evenly_spread() -> None:
    low = [min(gap.p for gap in gaps(*answers(0, seed))) < 0.1 for seed in range(60)]
    assert 0 <= np.mean(low) < 0.25  # corrected for both attributes: 0.1 is expected


def test_what_has_no_two_values_has_no_gap() -> None:
    labels, probabilities, _ = answers(0)
    one = {"site": Attribute(("east",), np.zeros(600, np.int32))}
    assert gaps(labels, probabilities, one) == () == gaps(labels, probabilities, {})
