"""The answers to a task's test images that the benchmark kept beside the profile."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.profile import EngineProfile, answers_name, labels_name
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION
from lorkd_deploy.reporting.facts.sources import Pair, Sources


@dataclass(frozen=True)
class Answers:
    """A task's test labels, `(N,)` or `(N, K)` of a multi-label task, and by the model's name the
    probabilities `(N, K)` of the teacher (if measured) and the expert; `engine` is the expert's."""

    task: TaskEntry
    engine: str
    labels: I64
    models: dict[str, F64]


def answers_of(sources: Sources, task: TaskEntry) -> Answers | None:
    """The answers of a task's first measured engine and its teacher; None where none were kept."""
    return next(
        (found for p in sources.pairs_of(task) if (found := answers_of_pair(sources, p))), None
    )


def answers_of_pair(sources: Sources, pair: Pair) -> Answers | None:
    """The answers of one engine and its teacher; None where the engine's weren't kept."""
    own = kept(sources, pair.task, pair.expert)
    if own is None:
        return None
    theirs = kept(sources, pair.task, pair.teacher)
    models = {FOUNDATION: theirs[1]} if theirs else {}
    return Answers(pair.task, pair.target, own[0], models | {EXPERT: own[1]})


def kept(sources: Sources, task: TaskEntry, engine: EngineProfile | None) -> tuple[I64, F64] | None:
    """A task's labels and what one engine answered; None where the benchmark didn't keep both."""
    labels = sources.answers.get(labels_name(task.name))
    given = sources.answers.get(answers_name(task.name, engine.engine)) if engine else None
    return None if labels is None or given is None else (labels, given)
