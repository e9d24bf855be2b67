from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.errors import RuntimeUnavailableError, UsageError
from lorkd_deploy.precisions.table import (
    BASELINE,
    PRECISIONS,
    Precision,
    Tolerance,
    converted,
    precision_of,
)
from lorkd_deploy.runtime import Probe


def no_images() -> np.ndarray:
    raise AssertionError("no calibration image is needed")


def test_tolerances_grow_from_exact_to_coarse_and_a_recipe_may_change_them() -> None:
    assert next(iter(PRECISIONS)) == BASELINE
    found = [row.tolerance for row in PRECISIONS.values()]
    assert found == sorted(found)
    bf16, fp16, int8 = (precision_of(name).tolerance for name in ("bf16", "fp16", "int8"))
    assert bf16.changed(0.2, None) == pytest.approx((0.2, bf16.flips, 0.2))
    assert fp16.changed(None, None) == fp16
    assert fp16.changed(None, 0) == fp16._replace(flips=0)
    assert int8.changed(int8.logits / 2, None).inputs == int8.inputs / 2


def test_a_precision_that_is_not_in_the_table() -> None:
    with pytest.raises(UsageError, match="fp7"):
        precision_of("fp7")


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_a_precision_without_a_pass_is_not_taken_for_another(name: str) -> None:
    probe = Probe(True, True, "1", ("fp32", name), converted=(name,))
    with pytest.raises(RuntimeUnavailableError, match=f"takes models in {name}.*convert"):
        converted(b"model", name, probe, no_images)
    assert converted(b"model", name, Probe(True, True, "1", (name,)), no_images) == b"model"


def test_an_unknown_precision_that_a_target_wants_converted() -> None:
    probe = Probe(True, True, "1", ("fp32", "fp7"), converted=("fp7",))
    with pytest.raises(UsageError, match="fp7"):
        converted(b"model", "fp7", probe, no_images)


def test_a_new_precision_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Precision("fp7", Tolerance(0.1, 0.1, 0.1), lambda model, *_: model[::-1])
    monkeypatch.setitem(PRECISIONS, "fp7", row)
    probe = Probe(True, True, "1", ("fp32", "fp7"), converted=("fp7",))
    assert converted(b"model", "fp7", probe, no_images) == b"ledom"
