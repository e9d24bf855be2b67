"""One engine in two benchmarks: which of its figures changed, and what is noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import (
    OF_ANSWERS,
    OF_CALLS,
    OF_ENGINE,
    RATIO,
    SIZE,
    Figure,
    Measured,
)
from lorkd_deploy.profiling.profile import Score
from lorkd_deploy.profiling.resampling import LEAST_ROUNDS, MARGIN, resampled_medians, seeded
from lorkd_deploy.profiling.scoring import TaskAnswers, difference
from lorkd_deploy.schema import Part

Verdict = Literal["better", "worse", "no change shown", "too few rounds"]


class Change(Part):
    """One figure of one engine in both runs.

    `change` is second over first of times, throughput, memory and sizes (`relative`), else second
    minus first, with its 95 % interval. A ratio is called a change where its interval lies wholly
    outside 1 ± 2 %, a difference where it excludes zero.
    """

    engine: str
    metric: str
    first: float
    second: float
    change: Interval
    relative: bool
    verdict: Verdict


@dataclass(frozen=True)
class Answered:
    """What an engine answered on a task's test split: `probabilities` `(N, K)` beside `labels`."""

    score: Score
    labels: npt.NDArray[Any]
    probabilities: F64


def measured_changes(old: Measured, new: Measured) -> Iterator[Change]:
    """Speed at every batch size of both, speed-up, start, energy, memory and size."""
    timings = {timing.batch: timing for timing in new.engine.timings}
    for timing in old.engine.timings:
        if timing.batch in timings:
            place = "" if timing is old.timing else f" at batch {timing.batch}"
            for figure in OF_CALLS:
                yield from _by_rounds(figure, old.at(timing), new.at(timings[timing.batch]), place)
    for figure in (RATIO, *OF_ENGINE):
        yield from _by_rounds(figure, old, new)
    yield _of_size(old, new)


def answer_changes(engine: str, old: Answered, new: Answered) -> Iterator[Change]:
    """Differences over the same images; none where the two runs were not given the same."""
    same = np.array_equal(old.labels, new.labels)
    if not same or old.probabilities.shape != new.probabilities.shape:
        return
    task = old.score.task
    given = TaskAnswers(
        task,
        old.labels,
        {"old": old.probabilities, "new": new.probabilities},
        {"old": old.score.thresholds, "new": new.score.thresholds},
    )
    found = difference(given, "new", "old")
    for figure in OF_ANSWERS:
        change, was, now = (figure.of(values) for values in (found, old.score, new.score))
        if change and was and now:
            moved = change.low > 0 or change.high < 0
            up = (change.value > 0) == figure.more_is_better
            yield Change(
                engine=engine,
                metric=f"{task} {figure.key}",
                first=was.value,
                second=now.value,
                change=change,
                relative=False,
                verdict=("better" if up else "worse") if moved else "no change shown",
            )


def comparable(figure: Figure, of: Measured) -> bool:
    """Whether a ratio can be given of it: every round has to be above zero."""
    return all(value > 0 for value in figure.rounds(of))


def _by_rounds(figure: Figure, old: Measured, new: Measured, place: str = "") -> Iterator[Change]:
    """Second over first, by resampling the rounds of each; nothing where one has none by round."""
    before, after = (np.asarray(figure.rounds(of), np.float64) for of in (old, new))
    if not (len(before) and len(after) and comparable(figure, old) and comparable(figure, new)):
        return
    generator = seeded()  # one for both: runs of their own aren't paired
    drawn = resampled_medians(after, generator) / resampled_medians(before, generator)
    value = float(np.median(after) / np.median(before))
    low, high = (float(v) for v in np.percentile(drawn, (2.5, 97.5)))
    few = min(len(before), len(after)) < LEAST_ROUNDS
    yield Change(
        engine=old.engine.engine,
        metric=f"{figure.compared_as}{place}",
        first=float(np.median(before)),
        second=float(np.median(after)),
        change=Interval(value=value, low=low, high=high),
        relative=True,
        verdict="too few rounds" if few else _verdict(figure, low, high),
    )


def _of_size(old: Measured, new: Measured) -> Change:
    """Of the files, in bytes: the same in every round, so that its interval is the ratio itself."""
    before, after = old.engine.bytes, new.engine.bytes
    ratio = after / before
    return Change(
        engine=old.engine.engine,
        metric=SIZE.compared_as,
        first=before,
        second=after,
        change=Interval(value=ratio, low=ratio, high=ratio),
        relative=True,
        verdict=_verdict(SIZE, ratio, ratio),
    )


def _verdict(figure: Figure, low: float, high: float) -> Verdict:
    """Of a ratio with this interval."""
    if low <= 1 + MARGIN and high >= 1 - MARGIN:
        return "no change shown"
    return "better" if (low > 1) == figure.more_is_better else "worse"
