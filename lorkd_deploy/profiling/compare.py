"""`lorkd compare`: what changed from one benchmark to another, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.changes import (
    Answered,
    Change,
    answer_changes,
    comparable,
    measured_changes,
)
from lorkd_deploy.profiling.figures import OF_ENGINE, measured
from lorkd_deploy.profiling.gates import ROUNDS
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    PROFILE,
    Profile,
    answers_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import read_tensors, sha256_file


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
    """One of the two runs; `answers` as `answers.safetensors` has them, empty without that file."""

    profile: Profile
    answers: dict[str, npt.NDArray[Any]]

    def answered(self, engine: str) -> dict[str, Answered]:
        """By task what `engine` answered, where its answers were kept."""
        found = {}
        for score in self.profile.engine(engine).scores:
            labels = self.answers.get(labels_name(score.task))
            given = self.answers.get(answers_name(score.task, engine))
            if labels is not None and given is not None:
                found[score.task] = Answered(score, labels, given)
        return found


def compare(run1: str | Path, run2: str | Path) -> RunChanges:
    """What changed from RUN1's benchmark to RUN2's; either may be a `profile.json` too.

    Engines are matched by name. Answers to the same test images are compared image by image, all
    else by resampling each run's rounds for itself; what was measured once only (MLPerf scenarios,
    the memory of all departments together) has no noise to be beyond and is left out. Raises
    `LorkdError` where a run has no readable profile, or no engine is in both.
    """
    first, second = _side(run1), _side(run2)
    theirs = {engine.engine for engine in second.profile.engines}
    both = [e.engine for e in first.profile.engines if e.engine in theirs]
    if not both:
        raise LorkdError(
            "the two runs have measured no engine of the same name",
            where=f"{run1}, {run2}",
            fix="compare runs of the same departments, tasks and targets",
        )
    return RunChanges(
        first=first.profile.created,
        second=second.profile.created,
        changes=tuple(change for engine in both for change in _changes(engine, first, second)),
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


def _changes(engine: str, first: _Side, second: _Side) -> Iterator[Change]:
    old, new = (measured(p.engine(engine), p) for p in (first.profile, second.profile))
    yield from measured_changes(old, new)
    after = second.answered(engine)
    for task, before in first.answered(engine).items():
        if task in after:
            yield from answer_changes(engine, before, after[task])


def _notes(first: Profile, second: Profile) -> Iterator[str]:
    for what, fields in (
        (
            "protocol",
            (
                "rounds",
                "seconds",
                "iterations",
                "threads",
                "batch_sizes",
                "input_shape",
                "teacher_input_shape",
            ),
        ),
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
        figure.compared_as
        for figure in OF_ENGINE
        if not all(comparable(figure, of) for of in of_engines)
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
