"""What of the teacher's features a student is asked for: their standardised principal components.

A student's features are narrower than a foundation model's, and a map between the two has to be
learnt. Where that map is on the teacher's side, as in the paper, the least loss is had by making
the target small, and so it shrinks. Here the target is fixed before the training begins: each
feature standardised over the training images of all tasks, turned to the principal components, the
first `COUNT` of which count alike,

    z = Λ^(-1/2) Vᵀ ((f - μ) / σ),    V Λ Vᵀ = cov((f - μ) / σ).

So z has mean 0, variance 1 and no correlations over those images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lorkd_deploy.arrays import F32, F64
from lorkd_deploy.errors import ModelError
from lorkd_deploy.storage import canonical_json, sha256_bytes
from lorkd_deploy.training.fitting.distillation.cache import cached, facts_of
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job

COUNT = 128
_LEAST_SPREAD = 1e-3  # added to σ, for a feature that is the same for all images
_LEAST_VARIANCE = 1e-5  # of the first component's, below which one is rounding of fp16
_CHUNK = 4096


class Components:
    """Features `(N, F)` → z `(N, K)`, float32, K being `COUNT` or as many as the features have.

    Computed once by the first process and read from the job's cache, beside the features. `facts`
    are for the history. Raises `ModelError` where all images have the same features.
    """

    def __init__(self, features: TeacherFeatures, job: Job) -> None:
        names = job.setup.names
        tasks = [features.of_task(number) for number in range(len(names))]
        prefix = f"components-{sha256_bytes(canonical_json(list(names)))[:8]}"  # of these tasks

        def make() -> F32:
            return _fitted(tasks) if job.processes.leads else np.zeros(0, np.float32)

        file = cached(job, prefix, features.facts, make, "principal components of them")
        held = torch.from_numpy(np.load(file)).to(job.device)
        self._map, self._offset = held[:-1], held[-1]
        self.count = len(self._offset)
        self.facts = {**facts_of(file), "count": self.count}

    def __call__(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # a target isn't rounded to bf16
            return features @ self._map + self._offset


def _fitted(tasks: list[np.ndarray]) -> F32:
    """The map of `Components` as `(F + 1, K)`, the last row being the offset."""
    chunks = [(task, start) for task in tasks for start in range(0, len(task), _CHUNK)]
    count = sum(len(task) for task in tasks)
    total = sum(_rows(*chunk).sum(axis=0) for chunk in chunks)
    mean = np.asarray(total) / count
    square = np.zeros((len(mean), len(mean)))
    for chunk in chunks:
        rows = _rows(*chunk) - mean
        square += rows.T @ rows
    covariance = square / count
    scale = 1 / (np.sqrt(np.diag(covariance)) + _LEAST_SPREAD)
    variances, axes = np.linalg.eigh(covariance * np.outer(scale, scale))
    variances, axes = variances[::-1][:COUNT], axes[:, ::-1][:, :COUNT]
    if not variances[0] > _LEAST_VARIANCE:
        raise ModelError(
            "the teacher's features are the same for every training image",
            where="transfer",
            fix="train the teacher for longer, or give it a checkpoint that fits",
        )
    kept = variances > _LEAST_VARIANCE * variances[0]
    whole = scale[:, None] * axes[:, kept] / np.sqrt(variances[kept])
    return np.concatenate([whole, -(mean @ whole)[None]]).astype(np.float32)


def _rows(task: np.ndarray, start: int) -> F64:
    return np.asarray(task[start : start + _CHUNK], np.float64)
