"""The calls of one engine at one batch size, and what they are summed up to.

A statistic of latency is a field of `Timing`, a line of `timing`, and a row in `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.resampling import by_rounds, spread_where_known
from lorkd_deploy.schema import Part

LEAST_CALLS = {"p99": 100, "p99_9": 1000}  # of fewer a percentile is little but the slowest call


@dataclass(frozen=True)
class RoundCalls:
    """One round at one batch size: int64 ns a call, peak memory in MiB over an empty process;
    `settled` is whether the median of the warm-up before it did."""

    calls: I64
    peak: float | None = None
    interruptions: int = 0
    settled: bool = True


class Timing(Part):
    """The runner's call at one batch size, over all rounds together.

    `p50` carries an interval found by resampling rounds; `throughput` is images over the time
    spent in calls, its interval likewise. `peak_mib` is the memory over an empty process up to the
    end of this batch size, smaller ones having run before (median of the rounds). `percentiles`
    are the 0th, 1st, … 100th. `p99` and `p99_9` are None for fewer calls than
    `LEAST_CALLS`. `interruptions` is how often in each round the kernel gave the
    engine's CPU to something else, `unsettled` in how many rounds the warm-up was given up before
    its median had settled. The `round_` figures are those of each round for itself.
    """

    batch: int
    calls: int
    p50: Interval
    p90: float
    p99: float | None
    p99_9: float | None
    mean: float
    minimum: float
    maximum: float
    throughput: Interval
    peak_mib: float | None
    round_p50: tuple[float, ...]
    round_calls: tuple[int, ...]
    interruptions: tuple[int, ...]
    percentiles: tuple[float, ...]
    unsettled: int
    round_p90: tuple[float, ...]
    round_p99: tuple[float, ...]
    round_throughput: tuple[float, ...]


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
        p50=by_rounds(medians, value=percentile(calls, 50)),
        p90=percentile(calls, 90),
        p99=_where_enough(calls, 99, LEAST_CALLS["p99"]),
        p99_9=_where_enough(calls, 99.9, LEAST_CALLS["p99_9"]),
        mean=float(calls.mean()) / 1e6,
        minimum=float(calls.min()) / 1e6,
        maximum=float(calls.max()) / 1e6,
        throughput=by_rounds(rates, value=_rate(batch, calls)),
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


def percentile(calls: I64, q: float) -> float:
    """The `q`-th percentile (linear interpolation, Hyndman and Fan's type 7) of ns, in ms."""
    return float(np.percentile(calls, q)) / 1e6


def _where_enough(calls: I64, q: float, least: int) -> float | None:
    return percentile(calls, q) if len(calls) >= least else None


def _rate(batch: int, calls: I64) -> float:
    return batch * len(calls) / (float(calls.sum()) / 1e9)
