"""Methods side by side: figures per task and over tasks, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.evidence.analysis.statistics import (
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
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.kept import Kept, key_of
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
    kept: Kept | None = None,
) -> Comparison:
    """Compare `first` with every other method; `answers` are one per seed, the same for all.

    A method that was trained once for all seeds (the foundation model) is given as often. What is
    in `kept` of a training's answers isn't resampled again.
    """
    figures: list[Figure] = []
    differences: list[Difference] = []
    each = {id(one): one for own in answers.values() for one in own}
    known = _Known(splits, each, n, kept or Kept())
    for metric in metrics:
        used = [split for split in splits if split.graded or metric is not kappa]
        if not used:
            continue
        by_task = {split.task: known.of(metric, split, seed) for seed, split in enumerate(used)}
        found = {m: _over(by_task, [id(one) for one in own]) for m, own in answers.items()}
        for method, of in found.items():
            figures += [_figure(method, task, metric, value) for task, value in of.items()]
        for second in (method for method in answers if method != first):
            pairs = {task: found[first][task] - value for task, value in found[second].items()}
            differences += _differences(first, second, metric, pairs)
    known.keep()
    return Comparison(figures=tuple(figures), differences=tuple(differences))


class _Known:
    """Of each training's answers, by their id, the figures under `n` resamples of the images.

    `(1 + n,)` for a metric of a task, as measured first; those that are lacking are computed of all
    trainings together, since they have the same resamples.
    """

    def __init__(
        self, splits: Sequence[TestSplit], answers: Mapping[int, Answers], n: int, kept: Kept
    ) -> None:
        self._answers, self._n, self._kept = answers, n, kept
        self._keys = {number: _key(splits, one, n) for number, one in answers.items()}
        self._found = {number: kept.read(key) for number, key in self._keys.items()}
        self._new: set[int] = set()

    def of(self, metric: Metric, split: TestSplit, seed: int) -> dict[int, F64]:
        name = f"{metric.name}/{split.task}"
        lacking = [number for number, own in self._found.items() if name not in own]
        if lacking:
            logits = [self._answers[number].logits[split.task] for number in lacking]
            probs = np.stack([probabilities(one, split.kind) for one in logits])
            made = resampled(metric, split.labels, probs, groups=split.groups, n=self._n, seed=seed)
            for place, number in enumerate(lacking):
                value, draws = made.values[place : place + 1], made.draws[:, place]
                self._found[number][name] = np.concatenate([value, draws])
            self._new |= set(lacking)
        return {number: own[name] for number, own in self._found.items()}

    def keep(self) -> None:
        for number in self._new:
            self._kept.write(self._keys[number], self._found[number])


def _key(splits: Sequence[TestSplit], answers: Answers, n: int) -> str:
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{s.task}/logits": answers.logits[s.task] for s in splits
    }
    arrays |= {f"{s.task}/labels": s.labels for s in splits}
    arrays |= {f"{s.task}/groups": s.groups for s in splits if s.groups is not None}
    tasks = [[split.task, split.kind, split.graded] for split in splits]
    return key_of("resamples", arrays, n=n, tasks=tasks)


def _over(
    by_task: Mapping[str, Mapping[int, F64]], seeds: Sequence[int]
) -> dict[str | None, Resampled]:
    """A method's by task, and under None their mean; `seeds` are the ids of its answers."""
    each: dict[str | None, Resampled] = {}
    for task, known in by_task.items():
        values = np.stack([known[number] for number in seeds], axis=1)
        each[task] = Resampled(values[0], values[1:])
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
