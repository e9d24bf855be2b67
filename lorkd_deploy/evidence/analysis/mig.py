"""The mutual information gap: does one direction of the features alone belong to a factor?

MIG (Chen et al. 2018) is, for a factor, the gap between the two latents that tell the most about
it, divided by the factor's entropy. The papers that report it for knowledge decomposition name
neither latents nor factors nor bins, so ours are stated here: latents are the first principal
components of a method's features, each cut into equally wide bins; the factors are the class,
within each task's test images, and task and class over all tasks' images together. Mutual
information is that of the counts. It is biased upward where bins hold few images, but alike for
all latents, so that the gap suffers less than its terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA  # type: ignore[import-untyped,unused-ignore]

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.evidence.analysis.statistics import image_counts

BINS = 20
DIMENSIONS = 10


@dataclass(frozen=True)
class Gap:
    """MIG of one factor: as measured, and `(B,)` under resamples of the images."""

    value: float
    draws: F64


def principal_components(features: npt.NDArray[Any], dimensions: int = DIMENSIONS) -> F64:
    """`(N, F)` → `(N, D)`, D at most `dimensions`, N and F; columns by falling variance."""
    values = np.asarray(features, np.float64)
    most = min(dimensions, *values.shape)
    return np.asarray(PCA(most, svd_solver="full").fit_transform(values), np.float64)


def binned(latents: F64, bins: int = BINS) -> I64:
    """`(N, D)` → `(N, D)`: each value's bin, equally wide from a latent's least to its greatest."""
    low, high = latents.min(axis=0), latents.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    return np.asarray(np.minimum((latents - low) / width * bins, bins - 1), np.int64)


def gap(
    latents: F64, factor: npt.NDArray[Any], *, bins: int = BINS, n: int = 0, seed: int = 0
) -> Gap:
    """MIG of one factor `(N,)` under latents `(N, D)`, D at least 2, with `n` resamples of images.

    Bins stay as they are in the resamples. NaN for a factor that is the same for all images.
    """
    factor = np.unique(np.asarray(factor), return_inverse=True)[1].reshape(-1)
    cells = binned(latents, bins)
    values = _gaps(cells, factor, np.ones((1, len(factor))), bins)
    blocks = [_gaps(cells, factor, c, bins) for c in image_counts(factor, None, n, seed)]
    return Gap(float(values[0]), np.concatenate(blocks) if blocks else np.empty(0))


def _gaps(cells: I64, factor: I64, counts: F64, bins: int) -> F64:
    """The gap under each row of `counts` `(B, N)`: `(B,)`."""
    values = int(factor.max()) + 1
    known = np.stack(
        [_information(cells[:, d] * values + factor, counts, (bins, values))
         for d in range(cells.shape[1])], axis=1,
    )  # fmt: skip
    best = np.sort(known, axis=1)
    entropy = _entropy(counts @ np.eye(values)[factor])
    with np.errstate(invalid="ignore"):
        return np.asarray((best[:, -1] - best[:, -2]) / entropy, np.float64)


def _information(cell: I64, counts: F64, shape: tuple[int, int]) -> F64:
    """I(latent; factor) of joint cell numbers `(N,)`, under each row of counts: `(B,)`."""
    rows = [np.bincount(cell, one, shape[0] * shape[1]) for one in counts]
    joint: F64 = np.asarray(rows, np.float64)
    table = joint.reshape(len(counts), *shape)
    latent, factor = _entropy(table.sum(axis=2)), _entropy(table.sum(axis=1))
    return np.asarray(latent + factor - _entropy(joint), np.float64)


def _entropy(counts: F64) -> F64:
    """Entropy in nats of each row's counts `(B, …)`."""
    share = counts / counts.sum(axis=1, keepdims=True)
    return np.asarray(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1), np.float64)


@dataclass(frozen=True)
class Disentanglement:
    """MIG of one method: mean over tasks `within` them, and over all for `task` and `classes`."""

    within: Gap
    task: Gap
    classes: Gap


def disentanglement(
    features: Sequence[npt.NDArray[Any]],
    labels: Sequence[npt.NDArray[Any]],
    *,
    dimensions: int = DIMENSIONS,
    bins: int = BINS,
    n: int = 0,
    seed: int = 0,
) -> Disentanglement:
    """MIG of features `(N_t, F)` and class numbers `(N_t,)`, one entry per task.

    Classes of different tasks are different values of the factor `classes`.
    """
    own = [principal_components(values, dimensions) for values in features]
    shared = principal_components(np.concatenate([np.asarray(f) for f in features]), dimensions)
    task = np.repeat(np.arange(len(labels)), [len(known) for known in labels])
    highest = max(int(np.max(known)) for known in labels) + 1
    classes = task * highest + np.concatenate([np.asarray(known) for known in labels])
    return Disentanglement(
        within_tasks(own, labels, bins=bins, n=n, seed=seed),
        gap(shared, task, bins=bins, n=n, seed=seed),
        gap(shared, classes, bins=bins, n=n, seed=seed),
    )


def within_tasks(
    latents: Sequence[F64],
    labels: Sequence[npt.NDArray[Any]],
    *,
    bins: int = BINS,
    n: int = 0,
    seed: int = 0,
) -> Gap:
    """MIG of the class, mean over tasks: latents `(N_t, D)` and class numbers `(N_t,)` of each."""
    gaps = [
        gap(own, known, bins=bins, n=n, seed=seed)
        for own, known in zip(latents, labels, strict=True)
    ]
    return Gap(
        float(np.mean([one.value for one in gaps])), np.mean([one.draws for one in gaps], axis=0)
    )
