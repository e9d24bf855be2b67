"""Accuracy of open engines on the validation splits of their tasks: to choose by, never to report.

The test split has no part in it: what is chosen on it would be flattered by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import F32, I64
from lorkd_deploy.bundle.manifest import TaskEntry, columns_of
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.data import Split
from lorkd_deploy.errors import DataError
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.runtime import Runner

WITHOUT = "choose a --precision, without --max-drop"
CHUNK = 32  # images that are prepared together and given to every engine
Accuracies = dict[str, float]  # by task, 0 … 1


@dataclass(frozen=True)
class Validation:
    """One task's validation split, and where its logits stand in the engine's output."""

    task: TaskEntry
    split: Split
    columns: slice


def validation_splits(bundle: Bundle, engine: str) -> list[Validation]:
    """The validation split of each of the engine's tasks.

    Raises `DataError` where the images aren't here, or are others than the bundle was made with.
    """
    found: list[Validation] = []
    for task, columns in columns_of(bundle.engine(engine)):
        try:
            data = bundle.own_data(task.name)
        except DataError as exc:
            raise DataError(
                f"accuracy is measured on the validation images of {task.name}: {exc.what}",
                where=exc.where,
                fix=f"{exc.fix}; or {WITHOUT}" if exc.fix else WITHOUT,
            ) from exc
        found.append(Validation(task, data.val, columns))
    return found


def accuracies(
    splits: list[Validation], bundle: Bundle, runners: Mapping[str, Runner]
) -> dict[str, Accuracies]:
    """Each runner's accuracy by task, over all images; an image is prepared once for all runners.

    Logits that are not finite count as wrong answers.
    """
    found: dict[str, Accuracies] = {name: {} for name in runners}
    for validation in splits:
        images, labels = validation.split.images, validation.split.labels
        logits: dict[str, list[F32]] = {name: [] for name in runners}
        for start in range(0, len(labels), CHUNK):
            stop = min(start + CHUNK, len(labels))
            batch = bundle.manifest.preprocess(images[row] for row in range(start, stop))
            for name, runner in runners.items():
                logits[name].append(runner(batch)[:, validation.columns])
        for name, parts in logits.items():
            kind = validation.task.kind
            found[name][validation.task.name] = _accuracy(np.concatenate(parts), labels, kind)
    return found


def _accuracy(logits: F32, labels: I64, kind: metrics.Kind) -> float:
    finite = np.isfinite(logits).all(axis=1)
    if not finite.any():
        return 0.0
    right = metrics.accuracy(labels[finite], metrics.probabilities(logits[finite], kind))
    return right * float(finite.mean())
