"""Networks of `benchmarks/students.py`, as many as there is time for, under its proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import students
from lorkd_deploy.errors import GateError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("torchvision:shufflenet_v2_x1_0", 37),
        ("torchvision:resnet18", 20),
        ("torchvision:mobilenet_v3_small", 42),
        ("timm:tf_efficientnet_lite0", 32),
        ("benchmarks.students:vit_tiny", 17),
    ],
)
def test_a_student_is_proven_by_logits_that_differ_between_images(
    architecture: str, layers: int, tmp_path: Path
) -> None:
    found = students.proven(students.Case(architecture), tmp_path)  # raises where parity fails
    assert found["bound"] == layers
    assert found["spread"] >= students.SPREAD
    assert found["difference"] <= students.DIFFERENCE
    assert found["flips"] == 0
    assert found["answers"] == 2 * (8 + 16), "both tasks, on generated inputs and test images"


@pytest.mark.thorough
def test_a_proof_that_proves_nothing_fails(tmp_path: Path) -> None:
    """Logits that are the head's bias alone: any engine has them."""
    with pytest.raises(GateError, match="hardly differ between"):
        students.proven(students.Case("tiny_backbone:blind"), tmp_path)
