"""Every image of a task's test split through the engines that were measured.

The validation split goes through them too where a threshold has to be chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64, I64, U8
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.data import Attribute, Split, TaskData
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import DataError
from lorkd_deploy.metrics import decisions
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.metrics.interval import where_defined
from lorkd_deploy.metrics.score import Metric
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.profiling.planning.setup import Setup
from lorkd_deploy.profiling.profile import Difference, Flips, Score, answers_name, labels_name
from lorkd_deploy.profiling.subgroups import gaps, subgroups
from lorkd_deploy.profiling.worker.process import EngineProcess, WorkerError
from lorkd_deploy.progress import Progress, bar

CHUNK = 128  # images that are preprocessed together, then given to each engine
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskAnswers:
    """The labels of a task, and by engine name the probabilities `(N, K)` that each engine gave and
    the thresholds at which it is judged, `from_recipe` or chosen on the validation split.
    `attributes` are what is known of the images beside.
    """

    task: str
    labels: I64
    probabilities: dict[str, F64]
    thresholds: dict[str, tuple[float, ...]]
    from_recipe: bool = False
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def open_task(bundle: Bundle, task: TaskEntry) -> TaskData | None:
    """The data that the bundle's model was tested on, or None where it isn't here."""
    try:
        return bundle.own_data(task.name)
    except DataError as exc:
        log.warning("no accuracy of %s: %s", task.name, exc)
        return None


def score_tasks(
    setup: Setup, progress: Progress | None
) -> tuple[dict[str, TaskAnswers], dict[str, str]]:
    """Task → what each engine answers on its test split, for the tasks whose data is here; and, for
    the notes, task → that an engine failed. All engines of a task are open at once, which may not
    fit into memory: no reason to lose the times.
    """
    scored, failed = {}, {}
    with bar(progress, "scoring the test images", len(setup.tasks)) as shown:
        for task in setup.tasks:
            data = open_task(setup.bundle, task)
            if data is not None:
                try:
                    scored[task.name] = answers(
                        task,
                        data,
                        setup.engines,
                        threads=setup.protocol.threads,
                        cpus=setup.protocol.cpus,
                        threshold=setup.bundle.recipe.task(task.name).threshold,
                    )
                except WorkerError as exc:
                    log.warning("%s", exc)
                    failed[task.name] = (
                        f"speed only, no accuracy, of {task.name}: an engine failed on its images "
                        "while the others of the task were open"
                    )
            shown.advance(task=task.name)
    return scored, failed


def answers(
    task: TaskEntry,
    data: TaskData,
    engines: Sequence[Artifact],
    *,
    threads: int,
    cpus: Sequence[int] | None,
    threshold: float | None = None,
) -> TaskAnswers:
    """Run all test images, the last partial batch too, through each engine that has the task.

    Without a `threshold` each engine's own are chosen on the validation split through it.
    """
    able = [engine for engine in engines if task.name in {t.name for t in engine.tasks}]
    with ExitStack() as stack:
        opened = [stack.enter_context(EngineProcess(e, threads, cpus)) for e in able]
        for process in opened:
            process.open()
        given = _through(opened, task, data.test)
        if threshold is None:
            seen = _through(opened, task, data.val)
            chosen = {name: decisions.youden(data.val.labels, p) for name, p in seen.items()}
        else:
            count = metrics.one_against_rest(data.test.labels, next(iter(given.values())))[0]
            chosen = dict.fromkeys(given, (threshold,) * count.shape[1])
    return TaskAnswers(
        task.name,
        data.test.labels,
        given,
        chosen,
        from_recipe=threshold is not None,
        attributes=data.test.attributes,
    )


def _through(opened: Sequence[EngineProcess], task: TaskEntry, split: Split) -> dict[str, F64]:
    """Probabilities of every image of `split`, by engine name; what engines share of an image's
    preparation is done once."""
    parts: dict[str, list[F32]] = {process.engine.name: [] for process in opened}
    ways = {process.engine.preprocess_sha256: process.engine.preprocess for process in opened}
    for images in zip(*(pictures(split, way) for way in ways.values()), strict=True):
        prepared = dict(zip(ways, images, strict=True))
        for process in opened:
            engine = process.engine
            given = process.infer(engine.batch(prepared[engine.preprocess_sha256]))
            columns = engine.task(task.name)
            parts[engine.name].append(given[:, columns.start : columns.stop])
    return {
        engine.name: metrics.probabilities_given(
            np.concatenate(parts[engine.name]), task.kind, raw=engine.raw
        )
        for engine in (process.engine for process in opened)
    }


def tensors(scored: Iterable[TaskAnswers]) -> dict[str, npt.NDArray[Any]]:
    """Labels and answers of every task, by the names they have in `answers.safetensors`."""
    found: dict[str, npt.NDArray[Any]] = {}
    for given in scored:
        found[labels_name(given.task)] = given.labels
        for engine, probabilities in given.probabilities.items():
            found[answers_name(given.task, engine)] = probabilities
    return found


def score(given: TaskAnswers, engine: str) -> Score:
    """How good one engine is on the split, with 95 % bootstrap intervals."""
    measures = decisions.measures(given.thresholds[engine])
    probabilities = given.probabilities[engine]
    return Score(
        task=given.task,
        images=len(given.labels),
        majority=metrics.majority(given.labels),
        thresholds=given.thresholds[engine],
        threshold_from="recipe" if given.from_recipe else "validation",
        subgroups=subgroups(measures, given.labels, probabilities, given.attributes),
        gaps=gaps(given.labels, probabilities, given.attributes),
        **_quality(measures, given.labels, probabilities),
    )


def difference(given: TaskAnswers, engine: str, beside: str) -> Difference:
    """`engine` minus `beside`, expert minus teacher; both are resampled with the same images."""
    both = np.hstack([given.probabilities[engine], given.probabilities[beside]])
    pairs = zip(
        *(decisions.measures(given.thresholds[name]) for name in (engine, beside)), strict=True
    )
    measures = [metrics.minus(left, right) for left, right in pairs]
    return Difference(
        task=given.task,
        flips=_flips(given, engine, beside),
        **_quality(measures, given.labels, both),
    )


def _quality(measures: Iterable[Metric], labels: I64, probabilities: F64) -> dict[str, Any]:
    """The fields of `Quality`: each metric's name is that of its field."""
    return {metric.name: where_defined(metric, labels, probabilities) for metric in measures}


def _flips(given: TaskAnswers, expert: str, teacher: str) -> Flips:
    now = decisions.decided(given.probabilities[expert], given.labels)
    before = decisions.decided(given.probabilities[teacher], given.labels)
    gained = int(((now == given.labels) & (before != given.labels)).sum())
    lost = int(((now != given.labels) & (before == given.labels)).sum())
    return Flips(
        answers=given.labels.size,
        gained=gained,
        lost=lost,
        moved=int((now != before).sum()) - gained - lost,
        p=None if given.labels.ndim == 2 else decisions.mcnemar(gained, lost),
    )


def pictures(split: Split, preprocess: Preprocess) -> Iterator[U8]:
    """Every image of `split` at network size, uint8 `(N, S, S, 3)`, a few at a time."""
    for start in range(0, len(split), CHUNK):
        stop = min(start + CHUNK, len(split))
        yield preprocess.stacked(split.images[i] for i in range(start, stop))
