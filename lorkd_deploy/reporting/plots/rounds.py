"""An engine's latency round by round, from the single calls where they lie beside the profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorkd_deploy.profiling.profile import EngineProfile, calls_name
from lorkd_deploy.profiling.timing import LEAST_CALLS
from lorkd_deploy.reporting.sources import Sources


@dataclass(frozen=True)
class Round:
    """One round at the smallest batch, ms a call; `number` is None for all rounds together, `p99`
    where the calls are too few for it."""

    number: int | None
    calls: int
    minimum: float
    p5: float
    p50: float
    p95: float
    p99: float | None
    maximum: float


def rounds(sources: Sources, engine: EngineProfile) -> list[Round]:
    """Every round of `engine`; a single entry for all of them where the calls aren't here."""
    timing = engine.latency
    found = []
    for index in range(len(timing.round_p50)):
        calls = sources.calls.get(calls_name(engine.engine, timing.batch, index))
        if calls is None or not len(calls):
            break
        marks = [float(v) / 1e6 for v in np.percentile(calls, (0, 5, 50, 95, 99, 100))]
        found.append(_round(index + 1, len(calls), marks))
    if len(found) == len(timing.round_p50):
        return found
    marks_of_all = [timing.percentiles[q] for q in (0, 5, 50, 95, 99, 100)]
    return [_round(None, timing.calls, marks_of_all)]


def _round(number: int | None, calls: int, marks: list[float]) -> Round:
    minimum, p5, p50, p95, p99, maximum = marks
    enough = calls >= LEAST_CALLS["p99"]
    return Round(number, calls, minimum, p5, p50, p95, p99 if enough else None, maximum)
