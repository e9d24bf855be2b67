from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.deploy.proof.parity import Parity, compare
from lorkd_deploy.precisions.table import precision_of


def task(kind: Literal["multiclass", "multilabel"] = "multiclass") -> TaskEntry:
    return TaskEntry(name="lung", department="ward", classes=("a", "b"), kind=kind, data={})


def compared(
    expected: Any,
    found: Any,
    kind: Any = "multiclass",
    on: Any = "inputs",
    precision: str = "fp32",
) -> Any:
    arrays = (np.asarray(a, np.float32) for a in (expected, found))
    return compare(task(kind), on, *arrays, precision_of(precision).tolerance)


def test_figures_are_those_of_the_formulas() -> None:
    result = compared([[3.0, 4.0], [20.0, 0.0]], [[3.0, 4.0], [20.0, 0.001]])
    assert result.rows == 2
    assert result.tolerance == pytest.approx(20e-4)  # 1e-4 × max(1, max |logit|)
    assert result.max_abs == pytest.approx(1e-3)
    assert result.mean_abs == pytest.approx(2.5e-4)
    assert result.cosine == pytest.approx(20 / np.hypot(20, 0.001))
    assert (result.flips, result.certain_flips, result.passed) == (0, 0, True)
    assert compared([[0.5, 0.1]], [[0.5, 0.1]]).tolerance == pytest.approx(1e-4)


def test_outside_the_tolerance_fails() -> None:
    assert compared([[1.0, 2.0]], [[1.0, 2.0 + 1.9e-4]]).passed
    assert not compared([[1.0, 2.0]], [[1.0, 2.0 + 2.1e-4]]).passed


def test_a_flip_is_a_failure_only_beyond_twice_the_tolerance() -> None:
    near = compared([[1.0, 1.0 + 1e-4]], [[1.00006, 1.00004]])
    assert (near.flips, near.certain_flips, near.passed) == (1, 0, True)
    far = compared([[1.0, 1.0 + 3e-4]], [[1.0 + 3e-4, 1.0]])
    assert (far.flips, far.certain_flips, far.passed) == (1, 1, False)
    assert "1 labels flipped, 1 of them beyond doubt" in str(far)


def test_few_labels_of_images_may_flip() -> None:
    expected = np.tile([1.0, 1.0 + 1e-3], (100, 1))
    found = expected.copy()
    for flips, passed in ((1, True), (2, False)):
        found[:flips] = found[:flips, ::-1] if flips == 1 else [1.0 + 1e-3, 1.0]
        result = compared(expected, found, on="images", precision="fp16")
        assert (result.flips, result.flips_allowed, result.passed) == (flips, 1, passed)
        assert compared(expected, found, precision="fp16").passed  # generated inputs: no meaning
    assert "2 labels flipped (1 allowed)" in str(result)
    labels = compared(
        np.full((50, 4), 1e-3), np.full((50, 4), -1e-3), "multilabel", "images", "bf16"
    )
    assert (labels.flips, labels.flips_allowed) == (200, 4)


def test_int8_is_judged_on_images_and_clips_what_it_was_not_calibrated_on() -> None:
    expected, found = [[10.0, 0.0]], [[1.0, 0.0]]
    assert compared(expected, found, on="inputs", precision="int8").passed
    assert not compared(expected, found, on="images", precision="int8").passed


def test_multilabel_flips_are_signs() -> None:
    result = compared([[1.0, -1.0], [0.5, 5e-5]], [[1.0, -1.0], [-0.5, -5e-5]], "multilabel")
    assert (result.flips, result.certain_flips) == (2, 1)
    same = compared([[1.0, 2.0]], [[2.0, 1.0]], "multilabel")
    assert same.flips == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_fails(bad: float) -> None:
    result = compared([[1.0, 2.0], [3.0, 1.0]], [[1.0, 2.0], [3.0, bad]])
    assert (result.non_finite, result.max_abs, result.passed) == (1, 0.0, False)
    nothing_left = compared([[1.0, 2.0]], [[bad, bad]])
    assert (nothing_left.max_abs, nothing_left.cosine) == (None, None)
    assert not nothing_left.passed
    assert "not finite" in str(nothing_left)


def test_cosine_of_rows_without_length() -> None:
    assert compared([[0.0, 0.0]], [[0.0, 0.0]]).cosine == 1.0
    assert compared([[0.0, 0.0]], [[0.0, 1e-5]]).cosine == 0.0


def test_the_verdict_is_over_all_figures() -> None:
    parts = (compared([[1.0, 2.0]], [[1.0, 2.0001]]), compared([[1.0, 2.0]], [[1.0, 2.00005]]))
    verdict = Parity(status="passed", compared=parts)
    assert verdict.max_abs == parts[0].max_abs
    assert verdict.worst == parts[0]
    wide = parts[0].model_copy(update={"tolerance": 1.0})
    assert Parity(status="passed", compared=(wide, parts[1])).worst == parts[1]
    assert verdict.flips == 0
    assert Parity(status="not run here").max_abs is None
    assert Parity(status="not run here").worst is None
    assert Parity.model_validate_json(verdict.model_dump_json()) == verdict
