"""Against scikit-learn and netcal, which fit and measure the same by code of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.safety.calibration import fitted_temperature, sureness


def overconfident(images: int = 600, classes: int = 4, factor: float = 3.0) -> tuple[Any, Any]:
    """Logits whose softmax at temperature `factor` is the labels' distribution, and the labels."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, (images, classes))
    drawn = [rng.choice(classes, p=row) for row in probabilities(true, "multiclass")]
    return factor * true, np.array(drawn)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    pytest.importorskip("sklearn", minversion="1.8")  # the first with method="temperature"
    calibration = pytest.importorskip("sklearn.calibration")
    frozen = pytest.importorskip("sklearn.frozen")
    utils = pytest.importorskip("sklearn.utils")

    logits, labels = overconfident()

    class Logits:
        """A classifier whose decisions are its inputs."""

        _estimator_type = "classifier"
        classes_ = np.arange(4)

        def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
            return self

        def decision_function(self, X: Any) -> Any:  # noqa: N803
            return X

        def predict(self, X: Any) -> Any:  # noqa: N803
            return X.argmax(axis=1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def __sklearn_tags__(self) -> Any:
            target = utils.TargetTags(required=True)
            tags = utils.Tags("classifier", target, input_tags=utils.InputTags())
            tags.classifier_tags = utils.ClassifierTags()
            return tags

    found = calibration.CalibratedClassifierCV(
        frozen.FrozenEstimator(Logits()), method="temperature"
    )
    found.fit(logits, labels)
    value = fitted_temperature(logits, labels, "multiclass")
    assert value == pytest.approx(3.0, rel=0.15)
    ours = probabilities(logits / value, "multiclass")
    assert np.abs(found.predict_proba(logits) - ours).max() < 2e-3


def test_error_and_score_are_those_of_netcal_and_scikit_learn() -> None:
    netcal = pytest.importorskip("netcal.metrics")
    sklearn = pytest.importorskip("sklearn.metrics")

    logits, labels = overconfident()
    probs = probabilities(logits, "multiclass")
    found = sureness(logits, labels, "multiclass")
    assert found.calibration_error.value == pytest.approx(
        netcal.ECE(15).measure(probs, labels), abs=1e-6
    )
    assert found.brier.value == pytest.approx(
        sklearn.brier_score_loss(labels, probs, labels=range(4), scale_by_half=False)
    )
    assert found.brier.low < found.brier.value < found.brier.high


def test_dividing_by_it_improves_both_and_changes_no_label() -> None:
    logits, labels = overconfident()
    value = fitted_temperature(logits, labels, "multiclass")
    before, after = (sureness(z, labels, "multiclass") for z in (logits, logits / value))
    assert after.calibration_error.high < before.calibration_error.low
    assert after.brier.value < before.brier.value
    assert np.array_equal(logits.argmax(axis=1), (logits / value).argmax(axis=1))


def test_findings_have_one_temperature_for_all() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (800, 3))
    labels = (rng.random((800, 3)) < probabilities(true, "multilabel")).astype(np.int64)
    value = fitted_temperature(true / 2, labels, "multilabel")
    assert value == pytest.approx(0.5, rel=0.1)
    assert sureness(true, labels, "multilabel").brier.value == pytest.approx(
        ((probabilities(true, "multilabel") - labels) ** 2).mean()
    )


def test_what_is_fitted_again_stays_within_the_bounds() -> None:
    logits, labels = np.random.default_rng(0).normal(0, 100, (50, 3)), np.zeros(50, np.int64)
    labels[::2] = 1
    assert fitted_temperature(logits, labels, "multiclass") == pytest.approx(10, rel=1e-6)
    assert fitted_temperature(logits / 10, labels, "multiclass", 10.0) == 1.0
    calibrated, labels = overconfident(factor=1.0)
    again = fitted_temperature(calibrated, labels, "multiclass")
    assert fitted_temperature(calibrated / again, labels, "multiclass", again) == 1.0


@pytest.mark.parametrize("count", [0, 5])
def test_images_that_are_all_answered_rightly_tell_no_temperature(count: int) -> None:
    logits = np.eye(5)[:count]
    assert fitted_temperature(logits, np.arange(count), "multiclass") == 1.0
