"""Disentanglement over seeds: MIG of each method, and what it changes with its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.comparison import TestSplit
from lorkd_deploy.evidence.mig import Gap, disentanglement, principal_components, within_tasks
from lorkd_deploy.evidence.statistics import Estimate, Resampled, estimate
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


def directions(splits: Sequence[TestSplit], answers: Sequence[Answers]) -> Directions | None:
    """Of one method, from its features of the test images, one `answers` per seed.

    Multi-label tasks, which have no classes, are left out; None where there is no other. A single
    task has no factor `task`.
    """
    used = [split for split in splits if split.kind == "multiclass"]
    labels = [split.labels for split in used]
    if not used:
        return None

    features = {  # of a method that was trained once for all seeds only once
        id(own): [own.features[split.task] for split in used] for own in answers
    }
    known = {seed: disentanglement(own, labels, n=RESAMPLES) for seed, own in features.items()}
    found = [known[id(own)] for own in answers]
    return Directions(
        within=_over_seeds([own.within for own in found]),
        task=_over_seeds([own.task for own in found]) if len(used) > 1 else None,
        classes=_over_seeds([own.classes for own in found]),
        settings=_settings(list(features.values()), labels),
    )


def _settings(
    features: Sequence[Sequence[npt.NDArray[Any]]], labels: Sequence[npt.NDArray[Any]]
) -> tuple[Setting, ...]:
    """`features` are `(N_t, F)` of each task, for each training."""
    most = max(dimensions for _, dimensions in SETTINGS)
    latents = [[principal_components(values, most) for values in own] for own in features]
    return tuple(
        Setting(
            bins=bins,
            dimensions=dimensions,
            within=float(
                np.mean(
                    [
                        within_tasks([z[:, :dimensions] for z in own], labels, bins=bins).value
                        for own in latents
                    ]
                )
            ),
        )
        for bins, dimensions in SETTINGS
    )


def _over_seeds(gaps: Sequence[Gap]) -> Estimate:
    values = np.array([gap.value for gap in gaps])
    return estimate(Resampled(values, np.stack([gap.draws for gap in gaps], axis=1)))
