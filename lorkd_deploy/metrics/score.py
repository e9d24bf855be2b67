"""How good predictions are. NumPy only.

Labels are int64 class numbers `(N,)` of a multiclass task, or 0 and 1 `(N, L)` of a multi-label
one; probabilities are float64 `(N, K)`. What can't be measured (the AUC of a class that the labels
never show) is left out of a mean, and is NaN where nothing is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.errors import ModelError

Kind = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class Metric:
    """A measure of labels and probabilities that also knows how to be resampled quickly.

    `weighted(labels, probs, counts)` takes how often each image counts, float64 `(B, N)`, and
    gives one value per row, `(B,)`.
    """

    name: str
    weighted: Callable[[I64, F64, F64], F64]

    def __call__(self, labels: npt.NDArray[Any], probs: F64) -> float:
        once = np.ones((1, len(labels)))
        return float(self.weighted(np.asarray(labels, np.int64), probs, once)[0])


def probabilities(logits: npt.NDArray[Any], kind: Kind) -> F64:
    """Logits `(N, K)` → float64 softmax, or for multi-label tasks the sigmoid of each.

    Raises `ModelError` for logits that are not finite.
    """
    values = _finite(logits)
    if kind == "multilabel":
        small = np.exp(-np.abs(values))  # never overflows
        return np.asarray(np.where(values >= 0, 1.0, small) / (1 + small), np.float64)
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float64)


def probabilities_given(given: npt.NDArray[Any], kind: Kind, *, raw: bool) -> F64:
    """The same of what an engine gives: logits, or with `raw` the probabilities themselves."""
    return _finite(given) if raw else probabilities(given, kind)


def _finite(given: npt.NDArray[Any]) -> F64:
    values = np.asarray(given, np.float64)
    if not np.isfinite(values).all():
        raise ModelError(
            "the model's outputs are not finite",
            where=f"image {np.flatnonzero(~np.isfinite(values).all(axis=1))[0]}",
            fix="check the training for a loss that grew, and the precision for overflow",
        )
    return values


def score(labels: npt.NDArray[Any], logits: npt.NDArray[Any], kind: Kind) -> dict[str, float]:
    """Accuracy, macro AUC and balanced accuracy, each 0 … 1; one that is undefined is left out."""
    probs = probabilities(logits, kind)
    values = {metric.name: metric(labels, probs) for metric in METRICS}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def majority(labels: npt.NDArray[Any]) -> float:
    """Accuracy of always answering what these labels show most often."""
    if labels.ndim == 2:
        share = labels.mean(axis=0)
        return float(np.maximum(share, 1 - share).mean())
    return float(np.bincount(labels).max() / len(labels))


def _accuracy(labels: I64, probs: F64, counts: F64) -> F64:
    if labels.ndim == 2:  # the share of right answers over all findings, as MedMNIST has it
        right = ((probs >= 0.5) == labels).mean(axis=1)
    else:
        right = (probs.argmax(axis=1) == labels).astype(np.float64)
    return np.asarray(counts @ right / counts.sum(axis=1), np.float64)


def _balanced_accuracy(labels: I64, probs: F64, counts: F64) -> F64:
    if labels.ndim == 2:
        right = ((probs >= 0.5) == labels).astype(np.float64)
        both = [recall(labels == value, right, counts) for value in (0, 1)]
        return mean_of_defined(mean_of_defined(np.stack(both, axis=-1)))
    truth = labels[:, None] == np.arange(probs.shape[1])
    right = (probs.argmax(axis=1) == labels).astype(np.float64)[:, None]
    return mean_of_defined(recall(truth, right, counts))


def recall(truth: npt.NDArray[np.bool_], right: F64, counts: F64) -> F64:
    """Share of right answers among the true ones, `(B, K)`; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray((counts @ (truth * right)) / (counts @ truth), np.float64)


def _auc(labels: I64, probs: F64, counts: F64) -> F64:
    truth, values = one_against_rest(labels, probs)
    areas = [_area(truth[:, k], values[:, k], counts) for k in range(values.shape[1])]
    return mean_of_defined(np.stack(areas, axis=1))


def one_against_rest(labels: I64, probs: F64) -> tuple[npt.NDArray[np.bool_], F64]:
    """The yes-or-no decisions of a task: what is true and the probability of it, both `(N, M)`.

    Of two classes that of the second alone (the other's is the same), else one per class or
    finding.
    """
    if labels.ndim == 2:
        return labels == 1, probs
    if probs.shape[1] == 2:
        return (labels == 1)[:, None], probs[:, 1:]
    return labels[:, None] == np.arange(probs.shape[1]), probs


def _area(truth: npt.NDArray[np.bool_], values: F64, counts: F64) -> F64:
    """Area under the ROC curve `(B,)`: the share of (positive, negative) pairs in right order.

    A tie counts half (Mann & Whitney 1947). One sort serves all resamples.
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weights = counts[:, order]
    positive = np.add.reduceat(np.where(truth[order], weights, 0.0), first, axis=1)
    negative = np.add.reduceat(np.where(truth[order], 0.0, weights), first, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * below).sum(axis=1) / pairs, np.float64)


def mean_of_defined(values: F64) -> F64:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice"
        return np.asarray(np.nanmean(values, axis=-1), np.float64)


def _kappa(labels: I64, probs: F64, counts: F64) -> F64:
    answers, classes = probs.argmax(axis=1), probs.shape[1]
    apart = (labels - answers).astype(np.float64) ** 2
    grades = np.arange(classes)
    distance = (grades[:, None] - grades).astype(np.float64) ** 2
    truth, said = counts @ np.eye(classes)[labels], counts @ np.eye(classes)[answers]
    by_chance = ((truth @ distance) * said).sum(axis=1) / counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(1 - counts @ apart / by_chance, np.float64)


def minus(left: Metric, right: Metric) -> Metric:
    """`left` of the left half of the columns minus `right` of the right half: paired resamples."""

    def weighted(labels: I64, both: F64, counts: F64) -> F64:
        half = both.shape[1] // 2
        first = left.weighted(labels, both[:, :half], counts)
        return first - right.weighted(labels, both[:, half:], counts)

    return Metric(left.name, weighted)


accuracy = Metric("accuracy", _accuracy)
auc = Metric("auc", _auc)
balanced_accuracy = Metric("balanced_accuracy", _balanced_accuracy)
METRICS = (accuracy, auc, balanced_accuracy)
# Cohen's, by squared distance (1968), of a multiclass task whose classes are grades in order.
kappa = Metric("kappa", _kappa)
