from __future__ import annotations

import numpy as np

from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.storage import sha256_bytes


def test_the_same_bytes_on_every_device() -> None:
    # The hash is recorded in every bundle: a change here makes all older bundles unverifiable.
    images = parity_inputs(64, 28, 0)
    assert images.shape == (64, 28, 28, 3)
    assert images.dtype == np.uint8
    assert sha256_bytes(images.tobytes()) == (
        "08dedd76f83005c7366e5ad2735678b8c18dbdb3db254bf4988f418f9657ad7a"
    )
    assert not np.array_equal(images, parity_inputs(64, 28, 1))
    np.testing.assert_array_equal(images[:5], parity_inputs(5, 28, 0))


def test_pictures_differ_in_brightness_and_in_detail() -> None:
    images = parity_inputs(64, 64, 3).astype(float)
    assert images.mean((1, 2, 3)).std() > 10
    roughness = np.abs(np.diff(images, axis=1)).mean((1, 2, 3))
    assert roughness.max() > 5 * roughness.min()
