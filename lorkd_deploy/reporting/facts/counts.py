"""Answers in counts: how often a finding was found, and how often it was seen where it isn't."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.metrics.decisions import decided
from lorkd_deploy.metrics.interval import Interval, wilson
from lorkd_deploy.metrics.score import one_against_rest
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.facts.answers import kept
from lorkd_deploy.reporting.facts.sources import Sources


@dataclass(frozen=True)
class Counts:
    """Of the `shown` test images with a finding `found` were found; of the `absent` ones without it
    `alarms` were said to have it."""

    finding: str
    found: int
    shown: int
    alarms: int
    absent: int

    @property
    def sensitivity(self) -> Interval:
        """With its 95 % Wilson interval."""
        return wilson(self.found, self.shown)

    @property
    def specificity(self) -> Interval:
        """With its 95 % Wilson interval."""
        return wilson(self.absent - self.alarms, self.absent)


def counts(sources: Sources, task: TaskEntry, engine: EngineProfile | None) -> tuple[Counts, ...]:
    """One for a task with two classes, at the threshold of its decisions table; one per finding of
    a multi-label task; none of several classes, or where the answers weren't kept or show one side
    only."""
    given = kept(sources, task, engine)
    score = engine.score(task.name) if engine else None
    if given is None or score is None or (task.kind == "multiclass" and len(task.classes) != 2):
        return ()
    truth, values = one_against_rest(*given)
    said = values >= np.asarray(score.thresholds)
    if task.kind == "multilabel":
        names = task.classes
    else:
        place = finding_of(sources, task)
        names = (task.classes[place],)
        truth, said = (truth, said) if place else (~truth, ~said)
    return tuple(
        Counts(
            name,
            found=int((truth[:, k] & said[:, k]).sum()),
            shown=int(truth[:, k].sum()),
            alarms=int((~truth[:, k] & said[:, k]).sum()),
            absent=int((~truth[:, k]).sum()),
        )
        for k, name in enumerate(names)
        if 0 < truth[:, k].sum() < len(truth)
    )


def right(sources: Sources, task: TaskEntry, engine: EngineProfile) -> tuple[int, int] | None:
    """How many of a task's answers are right, and of how many; None where none were scored."""
    score = engine.score(task.name)
    given = kept(sources, task, engine)
    if score is None:
        return None
    if given is None:
        return round(score.accuracy.value * score.images), score.images
    labels, probabilities = given
    return int((decided(probabilities, labels) == labels).sum()), labels.size


def finding_of(sources: Sources, task: TaskEntry) -> int:
    """Which of a task's two classes is the finding: the recipe's, else the second."""
    departments = sources.manifest.recipe.get("departments", ())
    named = {t["name"]: t.get("finding") for d in departments for t in d["tasks"]}
    name = named.get(task.name)
    return task.classes.index(name) if name in task.classes else 1
