"""Score intervals of shares, against published values and against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorkd_deploy.metrics.interval import paired_shares, wilson


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_is_the_published_one(
    hits: int, of: int, low: float, high: float
) -> None:
    found = wilson(hits, of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def likeliest_score(gained: int, lost: int, of: int, difference: float) -> float:
    """The score statistic at `difference`, its nuisance share found by trying all likelihoods."""
    second = np.linspace(max(0.0, -difference), (1 - difference) / 2, 100_001)[1:-1]
    first = second + difference
    likelihood = (of - gained - lost) * np.log(1 - first - second)
    likelihood += gained * np.log(first) + lost * np.log(second)
    best = int(np.argmax(likelihood))
    variance = of * (first[best] + second[best] - difference**2)
    return (gained - lost - of * difference) / math.sqrt(variance)


@pytest.mark.parametrize(("gained", "lost", "of"), [(9, 2, 44), (3, 11, 156), (1, 0, 30)])
def test_the_paired_interval_ends_where_its_score_is_1_96(gained: int, lost: int, of: int) -> None:
    found = paired_shares(gained, lost, of)
    assert found.value == (gained - lost) / of
    ends = [likeliest_score(gained, lost, of, end) for end in (found.low, found.high)]
    assert ends == pytest.approx([1.96, -1.96], abs=2e-3)


def test_models_that_never_differ_may_still_differ() -> None:
    few, many = paired_shares(0, 0, 20), paired_shares(0, 0, 2000)
    assert few.low < -0.1 and few.high > 0.1
    assert -0.003 < many.low < 0 < many.high < 0.003
