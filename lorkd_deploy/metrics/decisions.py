"""What a probability is worth once somebody acts on it: thresholds, calibration, paired decisions.

A task with two classes has one decision, that of its second class (label 1); with more classes
each is one against the rest; of a multi-label task each finding is one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.metrics.score import METRICS, Metric, mean_of_defined, one_against_rest, recall

BINS = 15  # as Guo et al. 2017 have it
NO_THRESHOLD = 0.5  # where the validation split shows only one side of a decision


def youden(labels: I64, probs: F64) -> tuple[float, ...]:
    """One threshold per decision: the one with the largest sensitivity + specificity − 1 (Youden
    1950). A value at or above it is positive; it lies halfway to the next smaller value, so that
    it is not decided by one image's last digits. 0.5 where a side is missing.
    """
    truth, values = one_against_rest(labels, probs)
    return tuple(_youden(truth[:, k], values[:, k]) for k in range(values.shape[1]))


def _youden(truth: npt.NDArray[np.bool_], values: F64) -> float:
    positive = int(truth.sum())
    if positive in (0, len(truth)):
        return NO_THRESHOLD
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], truth[order]
    last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))
    sensitivity = np.cumsum(hits)[last] / positive
    false_alarms = np.cumsum(~hits)[last] / (len(truth) - positive)
    best = int(np.argmax(sensitivity - false_alarms))
    here = float(ranked[last[best]])
    below = float(ranked[last[best + 1]]) if best + 1 < len(last) else 0.0
    return (here + below) / 2


def sensitivity(thresholds: tuple[float, ...]) -> Metric:
    """Share of the positive images at or above the threshold; the mean over several decisions."""
    limits = np.asarray(thresholds)

    def weighted(labels: I64, probs: F64, counts: F64) -> F64:
        truth, values = one_against_rest(labels, probs)
        return mean_of_defined(recall(truth, (values >= limits).astype(np.float64), counts))

    return Metric("sensitivity", weighted)


def specificity(thresholds: tuple[float, ...]) -> Metric:
    """Share of the negative images below the threshold; the mean over several decisions."""
    limits = np.asarray(thresholds)

    def weighted(labels: I64, probs: F64, counts: F64) -> F64:
        truth, values = one_against_rest(labels, probs)
        return mean_of_defined(recall(~truth, (values < limits).astype(np.float64), counts))

    return Metric("specificity", weighted)


def _calibration_error(labels: I64, probs: F64, counts: F64) -> F64:
    if labels.ndim == 2:
        confidence, right = probs, labels.astype(np.float64)
    else:
        confidence = probs.max(axis=1)[:, None]
        right = (probs.argmax(axis=1) == labels).astype(np.float64)[:, None]
    errors = []
    for k in range(confidence.shape[1]):
        inside = bins(confidence[:, k])[:, None] == np.arange(BINS)
        gaps = counts @ (inside * (right[:, k] - confidence[:, k])[:, None])
        errors.append(np.abs(gaps).sum(axis=1) / counts.sum(axis=1))
    return np.asarray(np.mean(errors, axis=0), np.float64)


calibration_error = Metric("calibration_error", _calibration_error)
"""Expected calibration error (Guo et al. 2017, equation 3): confidence of the given answer against
how often it is right, in 15 bins of equal width. Of a multi-label task the probability against how
often the finding is there, the mean over findings (Naeini et al. 2015)."""


def measures(thresholds: tuple[float, ...]) -> tuple[Metric, ...]:
    """Everything that is measured of a model's answers on a test split, at these thresholds."""
    return (*METRICS, sensitivity(thresholds), specificity(thresholds), calibration_error)


def bins(confidence: F64) -> I64:
    """Which of the `BINS` bins a confidence 0 … 1 falls in; 1 belongs to the last."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def decided(probs: F64, labels: I64) -> I64:
    """What is answered, in the form of `labels`: the most probable class, or 1 from 0.5 on."""
    if labels.ndim == 2:
        return (probs >= 0.5).astype(np.int64)
    return np.asarray(probs.argmax(axis=1), np.int64)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test (1947): the chance of a split at least as uneven as
    `gained` to `lost` if the two models were equally often right alone.
    """
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))
