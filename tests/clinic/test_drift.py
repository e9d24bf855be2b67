"""Against SciPy's two-sample test, and the index written out."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.clinic.drift import ks, psi


def test_the_distance_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for shift in (0, 0.2, 2):
        one, other = rng.normal(0, 1, 150), rng.normal(shift, 1, 400)
        expected = stats.ks_2samp(one, other, method="asymp")
        distance, p = ks(one, other)
        assert distance == pytest.approx(expected.statistic)
        assert p == pytest.approx(expected.pvalue, abs=0.03)


def test_the_index_is_zero_of_the_same_and_large_of_others() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, 1000)
    assert psi(one, one) == pytest.approx(0, abs=1e-12)
    assert psi(one, rng.normal(0, 1, 1000)) < 0.05
    assert psi(one, rng.normal(1, 1, 1000)) > 0.5
    halves = np.repeat([0.0, 1.0], 50)
    shares = np.repeat([0.0, 1.0], [25, 75])
    assert psi(halves, shares) == pytest.approx(0.25 * np.log(1.5) + 0.25 * np.log(2))
