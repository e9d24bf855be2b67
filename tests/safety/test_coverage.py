"""Against MAPIE, scikit-learn-contrib's conformal prediction, and SciPy's distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.safety.coverage import (
    answer_sets,
    most,
    nonconformity,
    outcomes,
    promise,
    quantile,
    referred,
)


def answers(images: int, seed: int) -> tuple[Any, Any]:
    """Probabilities of a mediocre model, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (images, 4))
    labels = np.array([rng.choice(4, p=row) for row in probabilities(true, "multiclass")])
    return probabilities(true + rng.normal(0, 0.5, true.shape), "multiclass"), labels


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_the_sets_are_those_of_mapie(coverage: float) -> None:
    mapie = pytest.importorskip("mapie.classification")
    sklearn = pytest.importorskip("sklearn.base")

    class Given(sklearn.ClassifierMixin, sklearn.BaseEstimator):  # type: ignore[misc,name-defined]
        """A classifier whose probabilities are its inputs."""

        def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
            self.classes_ = np.arange(4)
            return self

        def predict_proba(self, X: Any) -> Any:  # noqa: N803
            return X

        def predict(self, X: Any) -> Any:  # noqa: N803
            return X.argmax(axis=1)

    held, labels = answers(150, 0)
    probs, _ = answers(200, 1)
    oracle = mapie.SplitConformalClassifier(
        Given().fit(held, labels), confidence_level=coverage, conformity_score="lac", prefit=True
    )
    oracle.conformalize(held, labels)
    _, theirs = oracle.predict_set(probs)
    limit = quantile(nonconformity(held, labels), coverage)
    ours = answer_sets(probs, limit, "multiclass")
    assert np.array_equal(ours, theirs[:, :, 0])
    assert np.array_equal(referred(ours), ours.sum(axis=1) != 1)
    assert 0 < referred(ours).mean() < 1


@pytest.mark.thorough
def test_the_promise_is_kept_on_average_and_spreads_as_it_says() -> None:
    found = []
    for seed in range(200):
        probs, labels = answers(80 + 400, seed)
        limit = quantile(nonconformity(probs[:80], labels[:80]), 0.9)
        found.append((nonconformity(probs[80:], labels[80:]) <= limit).mean())
    assert np.mean(found) == pytest.approx(73 / 81, abs=0.01)
    low, high = promise(80, 0.9)
    assert np.mean([low - 0.03 < share < high + 0.03 for share in found]) > 0.9


@pytest.mark.parametrize(("images", "coverage"), [(39, 0.9), (500, 0.95), (20, 0.95)])
def test_the_promise_is_the_beta_distribution_s(images: int, coverage: float) -> None:
    stats = pytest.importorskip("scipy.stats")

    rank = int(np.ceil((images + 1) * coverage - 1e-9))
    expected = stats.beta(rank, images + 1 - rank).ppf([0.025, 0.975])
    assert promise(images, coverage) == pytest.approx(expected, abs=1e-9)


def test_all_findings_of_an_image_are_covered_at_once() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, (2000, 3))
    labels = (rng.random(true.shape) < probabilities(true, "multilabel")).astype(np.int64)
    probs = probabilities(true, "multilabel")
    limit = quantile(nonconformity(probs[:1000], labels[:1000]), 0.8)
    sets = answer_sets(probs[1000:], limit, "multilabel")
    held = np.take_along_axis(sets, labels[1000:, :, None], axis=2)[:, :, 0].all(axis=1)
    assert held.mean() == pytest.approx(0.8, abs=0.03)
    assert referred(sets).mean() > 0.5


def test_what_few_images_can_not_promise_is_refused_with_what_they_can() -> None:
    scores = np.linspace(0, 1, 10)
    assert quantile(scores, 10 / 11) == 1.0
    with pytest.raises(UsageError, match=r"10 held-out .* can't promise .* 0.95") as raised:
        quantile(scores, 0.95)
    assert raised.value.fix is not None and "at most 0.909" in raised.value.fix
    assert most(10) == pytest.approx(10 / 11)
    with pytest.raises(UsageError, match="between 0 and 1"):
        quantile(scores, 95)


def test_a_test_split_tells_what_came_of_each_promise() -> None:
    held, truth = answers(60, 0)
    probs, labels = answers(300, 1)
    scores = nonconformity(held, truth)
    nine, nineteen = outcomes(probs, labels, "multiclass", scores)
    assert (nine.coverage, nineteen.coverage) == (0.9, 0.95)
    assert nine.found.value == (nonconformity(probs, labels) <= quantile(scores, 0.9)).mean()
    assert nine.referred.value < nineteen.referred.value
    assert [c.coverage for c in outcomes(probs, labels, "multiclass", scores[:15])] == [0.9]
