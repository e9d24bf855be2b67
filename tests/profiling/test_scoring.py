"""What is said of an engine's answers, and of two engines' answers to the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lorkd_deploy.profiling
from lorkd_deploy.profiling.scoring import TaskAnswers, difference, score


def test_score_and_difference_of_known_answers() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    right = np.eye(3)[labels]
    wrong = right.copy()
    wrong[0] = (0, 1, 0)  # expert right: gained
    wrong[5] = (1, 0, 0)
    expert = right.copy()
    expert[2] = (0, 0, 1)  # teacher right: lost
    expert[5] = (0, 1, 0)  # both wrong, differently: moved
    limits = {"e": (0.5,) * 3, "t": (0.5,) * 3}
    given = TaskAnswers("t", labels, {"e": expert, "t": wrong}, limits)
    found = difference(given, "e", "t")
    assert found.flips is not None
    assert (found.flips.gained, found.flips.lost, found.flips.moved) == (1, 1, 1)
    assert (found.flips.answers, found.flips.p) == (6, 1.0)
    assert found.accuracy.value == 0
    own = score(given, "e")
    assert own.balanced_accuracy is not None and own.balanced_accuracy.value == pytest.approx(4 / 6)
    assert own.sensitivity is not None and own.sensitivity.value == pytest.approx(4 / 6)
    assert own.specificity is not None and own.specificity.value == pytest.approx(20 / 24)
    assert own.calibration_error is not None
    assert own.calibration_error.value == pytest.approx(2 / 6)
    assert own.calibration_error.low <= own.calibration_error.value <= own.calibration_error.high
    assert (own.thresholds, own.threshold_from) == ((0.5,) * 3, "validation")


@pytest.mark.parametrize("findings", [False, True])
def test_any_two_answers_to_the_same_images_are_compared(findings: bool) -> None:
    # As `lorkd compare` does with two runs: labels and answers say all, no task has to be made up.
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (200, 3)) if findings else random.integers(0, 3, 200)
    first, second = random.dirichlet(np.ones(3), (2, 200))
    limits = {"first": (0.2, 0.3, 0.4), "second": (0.4, 0.3, 0.2)}
    given = TaskAnswers("any", labels, {"first": first, "second": second}, limits)
    found, back = difference(given, "second", "first"), difference(given, "first", "second")
    for name in ("accuracy", "auc", "sensitivity", "specificity", "calibration_error"):
        own, other = (getattr(score(given, engine), name) for engine in ("second", "first"))
        assert getattr(found, name).value == pytest.approx(own.value - other.value)
        assert getattr(back, name).value == pytest.approx(other.value - own.value)
    assert (found.flips.gained, found.flips.lost) == (back.flips.lost, back.flips.gained)


def test_nothing_in_profiling_makes_up_a_task() -> None:
    (room,) = lorkd_deploy.profiling.__path__
    made = [file.name for file in Path(room).rglob("*.py") if "TaskEntry(" in file.read_text()]
    assert not made
