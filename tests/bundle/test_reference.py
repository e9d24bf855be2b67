from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.bundle.reference import ImageReference, reference_tensors
from lorkd_deploy.errors import ModelError


def test_reference_tensors_layout() -> None:
    rows, hashes = np.array([3, 1]), np.zeros((2, 32), np.uint8)
    logits, images = np.ones((2, 4)), np.zeros((2, 8, 8, 3), np.uint8)
    given = (rows, hashes, logits)
    # A task may be called like the generated inputs.
    tensors = reference_tensors(
        np.ones((5, 8)),
        {"inputs": ImageReference(*given, images), "eye": ImageReference(*given)},
    )
    assert {name: (value.dtype.str, value.shape) for name, value in tensors.items()} == {
        "inputs": ("<f4", (5, 8)),
        "inputs.index": ("<i8", (2,)),
        "inputs.sha256": ("|u1", (2, 32)),
        "inputs.logits": ("<f4", (2, 4)),
        "inputs.images": ("|u1", (2, 8, 8, 3)),
        "eye.index": ("<i8", (2,)),
        "eye.sha256": ("|u1", (2, 32)),
        "eye.logits": ("<f4", (2, 4)),
    }


def test_reference_that_could_prove_nothing() -> None:
    with pytest.raises(ModelError, match="not finite"):
        reference_tensors(np.array([[np.nan, 1]], np.float32), {})
    rows, hashes = np.arange(2), np.zeros((3, 32), np.uint8)
    with pytest.raises(ValueError, match="eye"):
        reference_tensors(
            np.ones((1, 2), np.float32),
            {"eye": ImageReference(rows, hashes, np.ones((2, 2), np.float32))},
        )
