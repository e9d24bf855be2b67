"""Percentiles on known arrays, and what synthetic rounds are reported to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy import report
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import PROFILE
from lorkd_deploy.profiling.resampling import spread, spread_where_known
from lorkd_deploy.profiling.summary import batch_ratio, paired_ratio, verdict
from lorkd_deploy.profiling.timing import RoundCalls, percentile, timing
from lorkd_deploy.schema import document_bytes
from tests.reporting.run_folder import TASKS, build_run

MS = 1_000_000


def rounds(
    p50: float, *, count: int = 10, seed: int = 0, drift: np.ndarray | None = None
) -> list[RoundCalls]:
    """Rounds of 400 calls of about `p50` ms, skewed as real ones, each round with its own level."""
    generator = np.random.default_rng(seed)
    levels = np.ones(count) if drift is None else drift
    own = 1 + 0.003 * generator.standard_normal(count)
    return [
        RoundCalls((p50 * level * o * MS * generator.lognormal(0, 0.05, 400)).astype(np.int64))
        for level, o in zip(levels, own, strict=True)
    ]


def test_percentiles_of_a_known_array() -> None:
    calls = (np.arange(1001) * MS).astype(np.int64)  # 0 … 1000 ms
    shuffled = np.random.default_rng(0).permutation(calls)
    assert [percentile(shuffled, q) for q in (0, 50, 90, 99, 99.9, 100)] == pytest.approx(
        [0, 500, 900, 990, 999, 1000]
    )
    assert percentile(np.array([2 * MS, 4 * MS]), 50) == 3  # interpolated


def test_a_timing_holds_every_call_of_every_round() -> None:
    first = np.full(99, 2 * MS)
    second = np.full(101, 4 * MS)
    second[7] = 900 * MS  # an outlier stays
    found = timing(8, [RoundCalls(first, 10.0, 1), RoundCalls(second, 12.0, 3)])
    assert (found.batch, found.calls, found.round_calls) == (8, 200, (99, 101))
    assert (found.round_p50, found.interruptions) == ((2, 4), (1, 3))
    assert (found.minimum, found.maximum, found.p90) == (2, 900, 4)
    assert found.mean == pytest.approx((99 * 2 + 100 * 4 + 900) / 200)
    assert found.throughput.value == pytest.approx(200 * 8 / ((99 * 2 + 100 * 4 + 900) / 1000))
    assert found.peak_mib == 11
    assert len(found.percentiles) == 101
    assert found.percentiles[100] == 900
    assert found.p50.low <= found.p50.value <= found.p50.high


def test_a_percentile_of_too_few_calls_is_none_and_the_report_says_so(tmp_path: Path) -> None:
    few, enough = (timing(8, [RoundCalls(np.full(n, 2 * MS))]) for n in (99, 100))
    assert (few.p90, few.p99, few.p99_9) == (2, None, None)
    assert (enough.p99, enough.p99_9) == (2, None)
    assert timing(8, [RoundCalls(np.full(1000, 2 * MS))]).p99_9 == 2

    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    file = run / "profile" / PROFILE
    profile = json.loads(file.read_text())
    for entry in profile["engines"][0]["timings"]:  # a column that no engine fills is left out
        entry |= {"calls": 57, "p99": None, "p99_9": None}
    file.write_bytes(document_bytes(profile))
    files = report(run)
    shown = [file.read_text() for file in (files.markdown, files.html, *files.tables)]
    assert all("too few calls" in text for text in shown[:2])


def test_spread_keeps_every_round_and_says_where_one_is_unknown() -> None:
    found = spread([3.0, 1.0, 8.0])
    assert (found.median, found.minimum, found.maximum) == (3, 1, 8)
    assert found.rounds == (3.0, 1.0, 8.0)
    assert spread_where_known([1.0, None]) is None


def test_the_ratio_is_paired_by_round() -> None:
    # The machine is five times slower in some rounds; teacher and expert suffer alike.
    drift = np.array([1, 5, 1, 2, 4.0])
    found = paired_ratio(6 * drift, 2 * drift)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("seed", range(20))
def test_an_expert_slowed_by_a_fifth_is_reported_slower(seed: int) -> None:
    drift = np.random.default_rng(100 + seed).uniform(1, 2, 10)
    teacher = timing(1, rounds(2.0, seed=seed, drift=drift))
    slowed = timing(1, rounds(2.4, seed=1000 + seed, drift=drift))
    assert batch_ratio(teacher, slowed).verdict == "slower"
    assert batch_ratio(slowed, teacher).verdict == "faster"


def test_a_copy_is_not_reported_as_different() -> None:
    verdicts = [
        batch_ratio(timing(1, rounds(2.0, seed=s)), timing(1, rounds(2.0, seed=999 - s))).verdict
        for s in range(20)
    ]
    assert verdicts.count("no difference shown") >= 19


def test_a_difference_is_claimed_only_outside_the_margin_and_from_five_rounds_on() -> None:
    assert verdict(Interval(value=1.05, low=1.01, high=1.1), 5) == "no difference shown"
    assert verdict(Interval(value=1.05, low=1.03, high=1.1), 5) == "faster"
    assert verdict(Interval(value=0.9, low=0.85, high=0.97), 5) == "slower"
    assert verdict(Interval(value=0.9, low=0.85, high=0.97), 4) == "too few rounds"


def test_five_rounds_give_the_range_as_interval() -> None:
    found = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (found.low, found.value, found.high) == (1, 3, 5)
