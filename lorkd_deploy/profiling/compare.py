"""`lorkd compare`: what changed from one benchmark to another, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import (
    OF_ANSWERS,
    OF_CALLS,
    OF_ENGINE,
    RATIO,
    SIZE,
    Figure,
    Measured,
    measured,
)
from lorkd_deploy.profiling.gates import ROUNDS
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    PROFILE,
    EngineProfile,
    Profile,
    Score,
    answers_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.profiling.resampling import (
    LEAST_ROUNDS,
    MARGIN,
    resampled_medians,
    seeded,
)
from lorkd_deploy.profiling.scoring import TaskAnswers, difference
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import read_tensors, sha256_file

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


class RunChanges(Part):
    """Every engine that both runs measured. `notes` say what else differs between them."""

    first: str
    second: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def beyond_noise(self) -> tuple[Change, ...]:
        """Only what changed."""
        unchanged = ("no change shown", "too few rounds")
        return tuple(entry for entry in self.changes if entry.verdict not in unchanged)


@dataclass(frozen=True)
class _Side:
    profile: Profile
    answers: dict[str, npt.NDArray[Any]]


def compare(run1: str | Path, run2: str | Path) -> RunChanges:
    """What changed from RUN1's benchmark to RUN2's; either may be a `profile.json` too.

    Engines are matched by name. Answers to the same test images are compared image by image, all
    else by resampling each run's rounds for itself; what was measured once only (MLPerf scenarios,
    the memory of all departments together) has no noise to be beyond and is left out. Raises
    `LorkdError` where a run has no readable profile, or no engine is in both.
    """
    first, second = _side(run1), _side(run2)
    theirs = {engine.engine: engine for engine in second.profile.engines}
    both = [(e, theirs[e.engine]) for e in first.profile.engines if e.engine in theirs]
    if not both:
        raise LorkdError(
            "the two runs have measured no engine of the same name",
            where=f"{run1}, {run2}",
            fix="compare runs of the same departments, tasks and targets",
        )
    changes = [change for pair in both for change in _changes(first, second, *pair)]
    return RunChanges(
        first=first.profile.created,
        second=second.profile.created,
        changes=tuple(changes),
        notes=tuple(_notes(first.profile, second.profile)),
    )


def _side(run: str | Path) -> _Side:
    file = Path(run)
    if not file.is_file():
        file = open_run(run).profile / PROFILE
    if not file.is_file():
        raise LorkdError(
            "this run has not been measured", where=file, fix=f"`lorkd benchmark {run}`"
        )
    profile = read_profile(file)
    answers = file.with_name(ANSWERS)
    known = answers.is_file() and sha256_file(answers) == profile.answers_sha256
    return _Side(profile, read_tensors(answers) if known else {})


def _changes(
    first: _Side, second: _Side, before: EngineProfile, after: EngineProfile
) -> Iterator[Change]:
    old, new = measured(before, first.profile), measured(after, second.profile)
    timings = {timing.batch: timing for timing in after.timings}
    for timing in before.timings:
        if timing.batch in timings:
            place = "" if timing is before.latency else f" at batch {timing.batch}"
            for figure in OF_CALLS:
                yield from _by_rounds(figure, old.at(timing), new.at(timings[timing.batch]), place)
    for figure in (RATIO, *OF_ENGINE):
        yield from _by_rounds(figure, old, new)
    yield _of_size(before, after)
    scores = {score.task: score for score in after.scores}
    for score in before.scores:
        if score.task in scores:
            yield from _quality(first, second, before.engine, score, scores[score.task])


def _by_rounds(figure: Figure, old: Measured, new: Measured, place: str = "") -> Iterator[Change]:
    """Second over first, by resampling the rounds of each; nothing where one has none by round, or
    a round that isn't above zero: no ratio can be given of that."""
    before, after = (np.asarray(figure.rounds(of), np.float64) for of in (old, new))
    if not len(before) or not len(after) or min(*before, *after) <= 0:
        return
    generator = seeded()  # one for both: runs of their own aren't paired
    drawn = resampled_medians(after, generator) / resampled_medians(before, generator)
    value = float(np.median(after) / np.median(before))
    low, high = (float(v) for v in np.percentile(drawn, (2.5, 97.5)))
    few = min(len(before), len(after)) < LEAST_ROUNDS
    yield Change(
        engine=old.engine.engine,
        metric=f"{figure.compared or figure.key}{place}",
        first=float(np.median(before)),
        second=float(np.median(after)),
        change=Interval(value=value, low=low, high=high),
        relative=True,
        verdict="too few rounds" if few else _verdict(figure, low, high),
    )


def _of_size(before: EngineProfile, after: EngineProfile) -> Change:
    """Of the files, in bytes: the same in every round, so that its interval is the ratio itself."""
    ratio = after.bytes / before.bytes
    return Change(
        engine=before.engine,
        metric=SIZE.compared,
        first=before.bytes,
        second=after.bytes,
        change=Interval(value=ratio, low=ratio, high=ratio),
        relative=True,
        verdict=_verdict(SIZE, ratio, ratio),
    )


def _verdict(figure: Figure, low: float, high: float) -> Verdict:
    """Of a ratio with this interval."""
    if low <= 1 + MARGIN and high >= 1 - MARGIN:
        return "no change shown"
    return "better" if (low > 1) == figure.more_is_better else "worse"


def _quality(
    first: _Side, second: _Side, engine: str, before: Score, after: Score
) -> Iterator[Change]:
    """Differences over the same images; none where the two runs were not given the same."""
    task = before.task
    labels = [side.answers.get(labels_name(task)) for side in (first, second)]
    given = [side.answers.get(answers_name(task, engine)) for side in (first, second)]
    if any(part is None for part in (*labels, *given)):
        return
    (old_labels, new_labels), (old, new) = labels, given
    assert old_labels is not None and new_labels is not None
    assert old is not None and new is not None
    if not np.array_equal(old_labels, new_labels) or old.shape != new.shape:
        return
    limits = {"before": before.thresholds, "after": after.thresholds}
    answers = TaskAnswers(task, old_labels, {"before": old, "after": new}, limits)
    found = difference(answers, "after", "before")
    for figure in OF_ANSWERS:
        change, was, now = (figure.of(values) for values in (found, before, after))
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


def _notes(first: Profile, second: Profile) -> Iterator[str]:
    for what, fields in (
        ("protocol", ("rounds", "seconds", "iterations", "threads", "batch_sizes", "input_shape")),
        ("environment", ("cpu", "allowed_cpus", "cpu_limit", "gpus", "kernel", "governor")),
    ):
        one, other = getattr(first, what), getattr(second, what)
        for field in fields:
            if getattr(one, field) != getattr(other, field):
                yield f"{field} differs: {getattr(one, field)}, then {getattr(other, field)}"
    old, new = first.environment.packages, second.environment.packages
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} differs: {old.get(name, 'absent')}, then {new.get(name, 'absent')}"
    of_engines = [measured(engine, p) for p in (first, second) for engine in p.engines]
    unfit = {
        figure.compared or figure.key
        for figure in OF_ENGINE
        if any(value <= 0 for of in of_engines for value in figure.rounds(of))
    }
    if unfit:
        yield (
            f"{' and '.join(sorted(unfit))} aren't compared where a round isn't above zero: no "
            "ratio can be given of that"
        )
    ours, theirs = ({e.engine for e in p.engines} for p in (first, second))
    if ours - theirs:
        yield f"only in the first run: {', '.join(sorted(ours - theirs))}"
    if theirs - ours:
        yield f"only in the second run: {', '.join(sorted(theirs - ours))}"
    fewest = min(first.protocol.rounds, second.protocol.rounds)
    if fewest < ROUNDS:
        yield (
            f"{fewest} rounds give wide intervals: `lorkd benchmark --rounds {ROUNDS}` is meant "
            "for comparing"
        )
    yield (
        "the two runs were not measured in the same rounds: a machine that was busier during one "
        "of them shows as a change of times; ratio_vs_teacher is the steadier figure"
    )
