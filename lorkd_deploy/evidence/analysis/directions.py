"""Disentanglement over seeds: MIG of each method, and what it changes with its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64
from lorkd_deploy.evidence.analysis.comparison import TestSplit
from lorkd_deploy.evidence.analysis.mig import (
    BINS,
    DIMENSIONS,
    disentanglement,
    principal_components,
    within_tasks,
)
from lorkd_deploy.evidence.analysis.statistics import Estimate, Resampled, estimate
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.kept import Arrays, Kept, key_of
from lorkd_deploy.schema import Part

RESAMPLES = 200
SETTINGS = tuple((bins, dims) for bins in (10, 20, 40) for dims in (5, 10, 20))


class Setting(Part):
    """The mean over seeds of MIG within tasks, under other bins and dimensions."""

    bins: int
    dimensions: int
    within: float


class Directions(Part):
    """MIG of a method: within tasks, and over all tasks of the task and of its classes."""

    within: Estimate
    task: Estimate | None
    classes: Estimate
    settings: tuple[Setting, ...]


def directions(
    splits: Sequence[TestSplit], answers: Sequence[Answers], kept: Kept | None = None
) -> Directions | None:
    """Of one method, from its features of the test images, one `answers` per seed.

    Multi-label tasks, which have no classes, are left out; None where there is no other. A single
    task has no factor `task`. What is in `kept` of a training isn't computed again.
    """
    used = [split for split in splits if split.kind == "multiclass"]
    if not used:
        return None
    each = {id(own): own for own in answers}  # one that was trained once for all seeds only once
    known = {number: _of_one(used, own, kept or Kept()) for number, own in each.items()}
    found = [known[id(own)] for own in answers]
    return Directions(
        within=_over_seeds([own["within"] for own in found]),
        task=_over_seeds([own["task"] for own in found]) if len(used) > 1 else None,
        classes=_over_seeds([own["classes"] for own in found]),
        settings=tuple(
            Setting(bins=bins, dimensions=dimensions, within=float(mean))
            for (bins, dimensions), mean in zip(
                SETTINGS, np.mean([own["settings"] for own in known.values()], axis=0), strict=True
            )
        ),
    )


def _of_one(splits: Sequence[TestSplit], answers: Answers, kept: Kept) -> Arrays:
    """Of one training: each gap `(1 + RESAMPLES,)`, as measured first, and `settings`, of each."""
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{s.task}/features": answers.features[s.task] for s in splits
    }
    arrays |= {f"{s.task}/labels": s.labels for s in splits}
    key = key_of(
        "mig", arrays, n=RESAMPLES, bins=BINS, dimensions=DIMENSIONS, settings=SETTINGS,
        tasks=[split.task for split in splits],
    )  # fmt: skip
    if known := kept.read(key):
        return known
    features = [answers.features[split.task] for split in splits]
    labels = [split.labels for split in splits]
    found = disentanglement(features, labels, n=RESAMPLES)
    gaps = {"within": found.within, "task": found.task, "classes": found.classes}
    made = {name: np.concatenate([[gap.value], gap.draws]) for name, gap in gaps.items()}
    made["settings"] = _settings(features, labels)
    kept.write(key, made)
    return made


def _settings(features: Sequence[npt.NDArray[Any]], labels: Sequence[npt.NDArray[Any]]) -> F64:
    """MIG within tasks under each of `SETTINGS`; `features` are `(N_t, F)` of each task."""
    most = max(dimensions for _, dimensions in SETTINGS)
    latents = [principal_components(values, most) for values in features]
    return np.array(
        [
            within_tasks([z[:, :dimensions] for z in latents], labels, bins=bins).value
            for bins, dimensions in SETTINGS
        ]
    )


def _over_seeds(gaps: Sequence[F64]) -> Estimate:
    values = np.stack(gaps, axis=1)
    return estimate(Resampled(values[0], values[1:]))
