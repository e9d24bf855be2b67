"""Is this picture mine? How far what the first layer sees is from a task's training images.

The engine gives it beside its logits: the mean and the deviation of every channel in front of its
second convolution. The score is the Mahalanobis distance in these (Lee et al. 2018) as a fraction
of the threshold: above 1 the picture is outside. Later layers, alone or beside the first, and the
logits themselves see foreign pictures worse: benchmarks/results/guard.md has the figures, and what
this one can't see.
"""

from __future__ import annotations

import numpy as np

from lorkd_deploy.arrays import F32, F64
from lorkd_deploy.safety.coverage import rank_interval, rank_of
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import Tensors

FALSE_ALARMS = 0.05  # of the task's own pictures
_MOST = 96  # components: 37 kB at 192 features, as of 96 channels
_RIDGE = 1e-3  # of the mean variance: a direction without any is no evidence
_MEAN, _WHITENING = "guard.mean", "guard.whitening"


class Guard(Part):
    """A task's guard: fitted on so many training images (`fitted_on`), its `threshold` set on
    `images` held-out ones, of which `false_alarms` are outside. Of future ones it is between `low`
    and `high`, with 95 % confidence.
    """

    threshold: float
    fitted_on: int
    images: int
    false_alarms: float
    low: float
    high: float


def fitted(features: F32) -> dict[str, F32]:
    """What `distances` needs of training images' `features` `(n, E)`, n ≥ 2: their mean `(E,)` and
    the map `(E, k)` to their principal components, k ≤ 96, each divided by its deviation.
    """
    values = np.asarray(features, np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / max(1, len(values) - 1))
    largest = np.argsort(variances)[::-1][:_MOST]
    floor = _RIDGE * max(float(variances.mean()), 1e-12)
    whitening = directions[:, largest] / np.sqrt(np.maximum(variances[largest], 0) + floor)
    return {_MEAN: mean.astype(np.float32), _WHITENING: whitening.astype(np.float32)}


def known_of(kept: Tensors) -> dict[str, F32]:
    """What `distances` needs of all that a bundle keeps of a task."""
    return {name: kept[name] for name in (_MEAN, _WHITENING)}


def distances(kept: Tensors, features: F32) -> F64:
    """How far each of `features` `(N, E)` is from those that `kept` was fitted on, `(N,)`."""
    whitened = (features - kept[_MEAN]) @ kept[_WHITENING]
    return np.asarray(np.sqrt(np.square(whitened, dtype=np.float64).sum(axis=1)), np.float64)


def guard_of(found: F64, fitted_on: int) -> Guard:
    """The threshold that leaves `FALSE_ALARMS` of future pictures outside, on average, where the
    distances `found` `(n,)` of held-out images, n ≥ 1, can tell; else the largest of them.
    """
    count = len(found)
    rank = min(count, rank_of(count, 1 - FALSE_ALARMS))
    threshold = float(np.sort(found)[rank - 1])
    low, high = rank_interval(count, rank)
    return Guard(
        threshold=threshold,
        fitted_on=fitted_on,
        images=count,
        false_alarms=float((found > threshold).mean()),
        low=1 - high,
        high=1 - low,
    )


def scores(kept: Tensors, guard: Guard, features: F32) -> F64:
    """Distances `(N,)` as a fraction of the threshold: above 1 a picture is outside."""
    return distances(kept, features) / max(guard.threshold, 1e-12)
