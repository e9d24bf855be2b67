"""`lorkd compare`: what changed from one benchmark to another, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.gates import ROUNDS
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    PROFILE,
    EngineProfile,
    Profile,
    Score,
    Timing,
    answers_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.profiling.scoring import TaskAnswers, difference
from lorkd_deploy.profiling.summary import LEAST_ROUNDS, MARGIN, RESAMPLES
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import read_tensors, sha256_file

Verdict = Literal["better", "worse", "no change shown", "too few rounds"]
F64 = npt.NDArray[np.float64]
_SEED = 0
# Figures of the calls → where a timing keeps them, one a round.
_OF_CALLS = {
    "p50_ms": "round_p50",
    "p90_ms": "round_p90",
    "p99_ms": "round_p99",
    "images_per_s": "round_throughput",
}
# Figures of the answers on a test split → whether more is better.
_QUALITY = {
    "accuracy": True,
    "auc": True,
    "balanced_accuracy": True,
    "sensitivity": True,
    "specificity": True,
    "calibration_error": False,
}


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
    name = before.engine
    timings = {timing.batch: timing for timing in after.timings}
    for old in before.timings:
        if new := timings.get(old.batch):
            place = "" if old is before.latency else f" at batch {old.batch}"
            yield from _calls(name, place, old, new)
    speed_ups = [_speed_up(side.profile, name) for side in (first, second)]
    if all(speed_ups):
        yield _ratio(name, "ratio_vs_teacher", *speed_ups, more_is_better=True)
    spreads = _spreads(after)
    for metric, old_rounds in _spreads(before).items():
        if metric in spreads and min(*old_rounds, *spreads[metric]) > 0:
            yield _ratio(name, metric, old_rounds, spreads[metric])
    size = after.bytes / before.bytes
    yield Change(
        engine=name,
        metric="size_bytes",
        first=before.bytes,
        second=after.bytes,
        change=Interval(value=size, low=size, high=size),
        relative=True,
        verdict=_verdict(size, size, more_is_better=False),
    )
    scores = {score.task: score for score in after.scores}
    for score in before.scores:
        if score.task in scores:
            yield from _quality(first, second, name, score, scores[score.task])


def _calls(engine: str, place: str, before: Timing, after: Timing) -> Iterator[Change]:
    """Median, tail and throughput of one batch size; what an older profile lacks is left out."""
    for metric, field in _OF_CALLS.items():
        old, new = getattr(before, field), getattr(after, field)
        if old and new:
            more = field == "round_throughput"
            yield _ratio(engine, f"{metric}{place}", old, new, more_is_better=more)


def _spreads(engine: EngineProfile) -> dict[str, Sequence[float]]:
    """What was measured once a round, by the name that a change of it gets; less is better."""
    cold, memory, stages = engine.cold_start, engine.memory, engine.stages
    found = {
        "load_ms": cold.load,
        "first_inference_ms": cold.first_inference,
        "process_to_first_answer_ms": cold.process_to_first_answer,
        "uncached_process_to_first_answer_ms": cold.uncached_process_to_first_answer,
        "end_to_end_ms": stages.end_to_end if stages else None,
        "loaded_mib": memory.loaded,
        "peak_mib": memory.peak,
        "gpu_mib": memory.gpu,
        "joules": engine.joules,
    }
    return {name: spread.rounds for name, spread in found.items() if spread is not None}


def _speed_up(profile: Profile, engine: str) -> list[float]:
    """Teacher's p50 over the expert's in each round, at the smallest batch; empty without one."""
    for entry in profile.comparisons:
        if entry.engine == engine:
            teacher, expert = profile.engine(entry.teacher), profile.engine(engine)
            pairs = zip(teacher.latency.round_p50, expert.latency.round_p50, strict=True)
            return [slow / fast for slow, fast in pairs]
    return []


def _ratio(
    engine: str,
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    more_is_better: bool = False,
) -> Change:
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    generator = np.random.default_rng(_SEED)
    drawn = _medians(new, generator) / _medians(old, generator)
    value = float(np.median(new) / np.median(old))
    low, high = (float(v) for v in np.percentile(drawn, (2.5, 97.5)))
    few = min(len(old), len(new)) < LEAST_ROUNDS
    return Change(
        engine=engine,
        metric=metric,
        first=float(np.median(old)),
        second=float(np.median(new)),
        change=Interval(value=value, low=low, high=high),
        relative=True,
        verdict="too few rounds" if few else _verdict(low, high, more_is_better=more_is_better),
    )


def _verdict(low: float, high: float, *, more_is_better: bool) -> Verdict:
    """Of a ratio with this interval."""
    if low <= 1 + MARGIN and high >= 1 - MARGIN:
        return "no change shown"
    return "better" if (low > 1) == more_is_better else "worse"


def _medians(values: F64, generator: np.random.Generator) -> F64:
    drawn = generator.integers(len(values), size=(RESAMPLES, len(values)))
    return np.asarray(np.median(values[drawn], axis=1), np.float64)


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
    kind: Any = "multilabel" if old_labels.ndim == 2 else "multiclass"
    entry = TaskEntry(name=task, department="compared", classes=(), kind=kind, data={})
    limits = {"before": before.thresholds, "after": after.thresholds}
    answers = TaskAnswers(entry, old_labels, {"before": old, "after": new}, limits)
    found = difference(answers, "after", "before")
    for metric, more_is_better in _QUALITY.items():
        change: Interval | None = getattr(found, metric)
        was, now = getattr(before, metric), getattr(after, metric)
        if change and was and now:
            moved = change.low > 0 or change.high < 0
            up = (change.value > 0) == more_is_better
            yield Change(
                engine=engine,
                metric=f"{task} {metric}",
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
    if not all(t.round_p99 for p in (first, second) for e in p.engines for t in e.timings):
        yield (
            "p90, p99 and throughput are not compared: a profile of an earlier version doesn't "
            "keep them by round"
        )
    measured = [_spreads(engine) for p in (first, second) for engine in p.engines]
    if unfit := {name for found in measured for name, rounds in found.items() if min(rounds) <= 0}:
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
