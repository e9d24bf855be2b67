"""From an open engine's outputs to an answer: outside, referred to a person, or a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64, Batch
from lorkd_deploy.bundle.manifest import SCORES
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, EngineTask
from lorkd_deploy.deploy.guarded import TaskGuard, task_guard
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.runtime import MAPS, OUTPUT, Runner
from lorkd_deploy.safety import coverage as conformal
from lorkd_deploy.schema import Part

Outcome = Literal["answered", "refer", "outside"]
OUTSIDE: Outcome = "outside"
REFER: Outcome = "refer"


class Answer(Part):
    """What is said of one image.

    `outcome` is `outside` where the guard says that the picture isn't of the task's kind: then
    there are no probabilities; `refer` where several answers, or none, keep the promised coverage:
    then a person has to read it; else `answered`. `label` is the most probable class, of a
    multi-label task all with at least 0.5, joined by a comma; or the outcome, where that is no
    answer. `probabilities` has every class in the bundle's order: they sum to 1, or, of a
    multi-label task, are one yes or no each. `possible` are the classes that a promised coverage
    leaves; None where none was asked for. `guard` is the guard's score, above 1 outside; None where
    the task has no guard or it is off.
    """

    outcome: Outcome = "answered"
    label: str
    probabilities: dict[str, float]
    possible: tuple[str, ...] | None = None
    guard: float | None = None


class Recorder(Protocol):
    """Who writes down what was answered: an audit log."""

    def answered(
        self, artifact: Artifact, answer: Answer, *, image: str, task: str, guarded: bool, ms: float
    ) -> None:
        """Keep one answer of an engine; `image` is the SHA-256 of the image's file."""
        ...


class Answering:
    """How a task's engine answers: with a guard, where the bundle has one and it isn't turned off
    (`guard`), and with sets of a promised `coverage` (0 … 1), if that is given. `raw` is the
    artifact's.

    Raises `UsageError` for a coverage that the bundle can't promise.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: EngineTask,
        *,
        guard: bool = True,
        coverage: float | None = None,
        raw: bool = False,
    ) -> None:
        self.task = task
        self._raw = raw
        self.guard = task_guard(bundle, task.name) if guard else None
        self._limit: float | None = None
        if coverage is not None:
            scores = bundle.safety(task.name).get(SCORES)
            if scores is None:
                raise UsageError(
                    f"the bundle has nothing that a coverage of {task.name} could rest on",
                    where=bundle.path,
                    fix="train with `--set safety.coverage=true`",
                )
            self._limit = conformal.quantile(scores, coverage)

    def __call__(self, runner: Runner, batch: Batch) -> list[Answer]:
        """Answers to a batch that the engine takes.

        Raises `ArtifactError` for an engine that fails, gives what isn't finite, or lacks what the
        guard needs.
        """
        return self._answered({OUTPUT: runner(batch)} if not self.guard else runner.outputs(batch))

    def explained(self, runner: Runner, batch: Batch) -> list[tuple[Answer, F32 | None]]:
        """Answers, each with the map `(h, w)` of where the most probable class was seen; None for a
        picture that is outside. Raises as a call does, and for an engine without maps.
        """
        given = runner.outputs(batch)
        if MAPS not in given:
            raise ArtifactError(
                "this engine gives no map of where it looks", fix="lorkd export RUN --explain"
            )
        answers = self._answered(given)
        maps = given[MAPS][:, self.task.start : self.task.stop]
        found: list[tuple[Answer, F32 | None]] = []
        for answer, of_classes in zip(answers, maps, strict=True):
            probable = list(answer.probabilities.values())
            found.append((answer, of_classes[int(np.argmax(probable))] if probable else None))
        return found

    def _answered(self, given: Mapping[str, F32]) -> list[Answer]:
        outside = scores_of(self.guard, given)
        rows = probabilities_of(self.task, given, raw=self._raw)
        return list(self._answers(rows, outside))

    def _answers(self, rows: F64, outside: F64 | None) -> Iterator[Answer]:
        sets = referred = None
        if self._limit is not None:
            sets = conformal.answer_sets(rows, self._limit, self.task.kind)
            referred = conformal.referred(sets)
        for place, row in enumerate(rows):
            score = None if outside is None else float(outside[place])
            if score is not None and score > 1:
                yield Answer(outcome=OUTSIDE, label=OUTSIDE, probabilities={}, guard=score)
                continue
            possible = None if sets is None else self._names(sets[place])
            refer = referred is not None and bool(referred[place])
            yield Answer(
                outcome=REFER if refer else "answered",
                label=REFER if refer else label_of(self.task, row),
                probabilities=dict(zip(self.task.classes, row.tolist(), strict=True)),
                possible=possible,
                guard=score,
            )

    def _names(self, row: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        """The classes, or of a multi-label task the findings, that can't be ruled out."""
        there = row[:, 1] if row.ndim == 2 else row
        return tuple(name for name, yes in zip(self.task.classes, there, strict=True) if yes)


def probabilities_of(task: EngineTask, given: Mapping[str, F32], *, raw: bool) -> F64:
    """A task's probabilities `(N, K)`, of everything that a runner gives of N images; with `raw`
    that has them already.

    Raises `ArtifactError` for values that aren't finite.
    """
    values = next(iter(given.values()))[:, task.start : task.stop]
    _require_finite(bool(np.isfinite(values).all()))
    return metrics.probabilities_given(values, task.kind, raw=raw)


def scores_of(guard: TaskGuard | None, given: Mapping[str, F32]) -> F64 | None:
    """The guard's scores `(N,)`, above 1 outside; None without a guard. Raises `ArtifactError` for
    scores that are no numbers, or an engine that lacks what the guard needs.
    """
    if guard is None:
        return None
    found = guard.scores(given)
    _require_finite(not np.isnan(found).any())
    return found


def label_of(task: EngineTask, row: F64) -> str:
    """The most probable class of an image's probabilities `(K,)`; of a multi-label task all with at
    least 0.5, joined by a comma.
    """
    if task.kind == "multilabel":
        return ", ".join(name for name, p in zip(task.classes, row, strict=True) if p >= 0.5)
    return task.classes[int(row.argmax())]


def _require_finite(finite: bool) -> None:
    if not finite:
        raise ArtifactError(
            "the engine gives values that are not finite", fix="run `lorkd verify` on this device"
        )
