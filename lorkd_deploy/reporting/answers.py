"""The answers to a task's test images that the benchmark kept beside the profile."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.profile import answers_name, labels_name
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION
from lorkd_deploy.reporting.sources import Sources


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
    labels = sources.answers.get(labels_name(task.name))
    if labels is None:
        return None
    for pair in sources.pairs_of(task):
        models = {}
        for model, engine in ((FOUNDATION, pair.teacher), (EXPERT, pair.expert)):
            name = answers_name(task.name, engine.engine) if engine else None
            if name in sources.answers:
                models[model] = sources.answers[name]
        if EXPERT in models:
            return Answers(task, pair.target, labels, models)
    return None
