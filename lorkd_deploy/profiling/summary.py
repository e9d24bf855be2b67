"""From single calls to figures: percentiles, intervals by resampling rounds, paired ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import BatchRatio, Spread, Timing

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Verdict = Literal["faster", "slower", "no difference shown", "too few rounds"]
MARGIN = 0.02
LEAST_ROUNDS = 5  # the median's range over n rounds covers 1 - 2^(1-n): 94 % with five
RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class RoundCalls:
    """One round at one batch size: int64 ns a call, peak memory in MiB over an empty process;
    `settled` is whether the median of the warm-up before it did."""

    calls: I64
    peak: float | None = None
    interruptions: int = 0
    settled: bool = True


def percentile(calls: I64, q: float) -> float:
    """The `q`-th percentile (linear interpolation, Hyndman and Fan's type 7) of ns, in ms."""
    return float(np.percentile(calls, q)) / 1e6


def spread(values: Sequence[float]) -> Spread:
    """One value a round, summed up."""
    return Spread(
        median=float(np.median(values)),
        minimum=min(values),
        maximum=max(values),
        rounds=tuple(values),
    )


def spread_where_known(values: Sequence[float | None]) -> Spread | None:
    """`spread`, or None where a round has no value."""
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def timing(batch: int, rounds: Sequence[RoundCalls]) -> Timing:
    """Sum up one engine's rounds at one batch size.

    Rounds, not calls, are resampled for the intervals: calls of one process aren't independent.
    """
    calls = np.concatenate([part.calls for part in rounds])
    medians = np.array([percentile(part.calls, 50) for part in rounds])
    rates = np.array([_rate(batch, part.calls) for part in rounds])
    peak = spread_where_known([part.peak for part in rounds])
    return Timing(
        batch=batch,
        calls=len(calls),
        p50=_by_rounds(medians, value=percentile(calls, 50)),
        p90=percentile(calls, 90),
        p99=percentile(calls, 99),
        p99_9=percentile(calls, 99.9),
        mean=float(calls.mean()) / 1e6,
        minimum=float(calls.min()) / 1e6,
        maximum=float(calls.max()) / 1e6,
        throughput=_by_rounds(rates, value=_rate(batch, calls)),
        peak_mib=None if peak is None else peak.median,
        round_p50=tuple(float(value) for value in medians),
        round_calls=tuple(len(part.calls) for part in rounds),
        interruptions=tuple(part.interruptions for part in rounds),
        unsettled=sum(not part.settled for part in rounds),
        percentiles=tuple(float(v) / 1e6 for v in np.percentile(calls, np.arange(101))),
        round_p90=tuple(percentile(part.calls, 90) for part in rounds),
        round_p99=tuple(percentile(part.calls, 99) for part in rounds),
        round_throughput=tuple(float(value) for value in rates),
    )


def paired_ratio(teacher: Sequence[float], expert: Sequence[float]) -> Interval:
    """Median over rounds of teacher / expert of the same round, with its 95 % interval."""
    ratios = np.asarray(teacher, np.float64) / np.asarray(expert, np.float64)
    return _by_rounds(ratios, value=float(np.median(ratios)))


def batch_ratio(teacher: Timing, expert: Timing) -> BatchRatio:
    """Compare two timings of one batch size whose rounds were measured together."""
    ratio = paired_ratio(teacher.round_p50, expert.round_p50)
    return BatchRatio(
        batch=expert.batch, ratio=ratio, verdict=verdict(ratio, len(expert.round_p50))
    )


def verdict(ratio: Interval, rounds: int) -> Verdict:
    """What teacher / expert shows of the expert: only an interval wholly outside 1 ± MARGIN."""
    if rounds < LEAST_ROUNDS:
        return "too few rounds"
    if ratio.low > 1 + MARGIN:
        return "faster"
    if ratio.high < 1 - MARGIN:
        return "slower"
    return "no difference shown"


def _rate(batch: int, calls: I64) -> float:
    return batch * len(calls) / (float(calls.sum()) / 1e9)


def _by_rounds(values: F64, *, value: float) -> Interval:
    """95 % percentile-bootstrap interval of the median of one value a round."""
    # With five rounds it reaches from the smallest to the largest, which is 94 %. `value`, of
    # all calls together, may lie outside where rounds differ in their number of calls.
    generator = np.random.default_rng(_SEED)
    drawn = generator.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), (2.5, 97.5))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
