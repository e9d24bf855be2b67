"""Methods side by side: figures per task and over tasks, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.statistics import (
    Estimate,
    Resampled,
    Verdict,
    estimate,
    holm,
    over_tasks,
    resampled,
    seeds_needed,
    verdict,
)
from lorkd_deploy.metrics.score import (
    Kind,
    Metric,
    accuracy,
    auc,
    balanced_accuracy,
    kappa,
    probabilities,
)
from lorkd_deploy.schema import Part

METRICS = (auc, accuracy, balanced_accuracy, kappa)  # kappa of graded tasks alone
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class TestSplit:
    """What is true of a task's test images: labels as in `data.Split`, and groups or None.

    `graded`: the classes are grades in order.
    """

    __test__ = False  # no test for pytest, whatever its name begins with

    task: str
    kind: Kind
    labels: I64
    groups: I64 | None = None
    graded: bool = False


class Figure(Part):
    """A metric of a method on a task, None: over all tasks; `seeds` are its values per seed.

    All tasks are, for kappa, those whose classes are grades.
    """

    method: str
    task: str | None
    metric: str
    seeds: tuple[float, ...]
    estimate: Estimate


class Difference(Part):
    """`first` minus `second` in a metric, on a task or over all of them.

    `p` is corrected over the tasks (Holm); over all of them there is nothing to correct. `needed`
    is the number of seeds that would show it, where it isn't shown and more seeds would.
    """

    first: str
    second: str
    task: str | None
    metric: str
    seeds: tuple[float, ...]
    estimate: Estimate
    p: float
    verdict: Verdict
    needed: int | None


class Comparison(Part):
    """Every figure of every method, and every difference from the one that is looked at."""

    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that were measured, in the order in which they are shown."""
        return tuple(dict.fromkeys(figure.metric for figure in self.figures))

    def figure(self, method: str, task: str | None, metric: str) -> Figure:
        """The one of that method and metric, on a task or (None) over all of them."""
        wanted = (method, task, metric)
        return next(f for f in self.figures if (f.method, f.task, f.metric) == wanted)

    def difference(self, second: str, task: str | None, metric: str) -> Difference:
        """The one from `second`."""
        wanted = (second, task, metric)
        return next(d for d in self.differences if (d.second, d.task, d.metric) == wanted)


def compared(
    splits: Sequence[TestSplit],
    answers: Mapping[str, Sequence[Answers]],
    *,
    first: str,
    metrics: Sequence[Metric] = METRICS,
    n: int = RESAMPLES,
) -> Comparison:
    """Compare `first` with every other method; `answers` are one per seed, the same for all.

    A method that was trained once for all seeds (the foundation model) is given as often.
    """
    figures: list[Figure] = []
    differences: list[Difference] = []
    for metric in metrics:
        used = [split for split in splits if split.graded or metric is not kappa]
        if not used:
            continue
        found = {m: _resampled(metric, used, own, n) for m, own in answers.items()}
        for method, by_task in found.items():
            figures += [_figure(method, task, metric, value) for task, value in by_task.items()]
        for second in (method for method in answers if method != first):
            pairs = {task: found[first][task] - value for task, value in found[second].items()}
            differences += _differences(first, second, metric, pairs)
    return Comparison(figures=tuple(figures), differences=tuple(differences))


def _resampled(
    metric: Metric, splits: Sequence[TestSplit], answers: Sequence[Answers], n: int
) -> dict[str | None, Resampled]:
    """By task, and under None their mean."""
    each: dict[str | None, Resampled] = {}
    for number, split in enumerate(splits):
        probs = np.stack([probabilities(own.logits[split.task], split.kind) for own in answers])
        each[split.task] = resampled(
            metric, split.labels, probs, groups=split.groups, n=n, seed=number
        )
    each[None] = over_tasks(list(each.values()))
    return each


def _figure(method: str, task: str | None, metric: Metric, value: Resampled) -> Figure:
    seeds = tuple(float(v) for v in value.values)
    known = estimate(value)
    return Figure(method=method, task=task, metric=metric.name, seeds=seeds, estimate=known)


def _differences(
    first: str, second: str, metric: Metric, pairs: Mapping[str | None, Resampled]
) -> list[Difference]:
    estimates = {task: estimate(pair) for task, pair in pairs.items()}
    tasks = [task for task in pairs if task is not None]
    corrected: dict[str | None, float] = {None: estimates[None].p}
    corrected |= dict(zip(tasks, holm([estimates[task].p for task in tasks]), strict=True))
    made = []
    for task, pair in pairs.items():
        word = verdict(estimates[task], corrected[task])
        made.append(
            Difference(
                first=first,
                second=second,
                task=task,
                metric=metric.name,
                seeds=tuple(float(v) for v in pair.values),
                estimate=estimates[task],
                p=corrected[task],
                verdict=word,
                needed=seeds_needed(pair) if word == "not shown" else None,
            )
        )
    return made
