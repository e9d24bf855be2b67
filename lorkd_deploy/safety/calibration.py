"""How sure: one temperature per task (Guo et al. 2017), folded into the head's weights and bias.

Logits divided by T have the same order, so no label changes, and a head that holds W / T and b / T
gives them in every engine without another operation.
"""

from __future__ import annotations

import numpy as np

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.metrics.decisions import calibration_error
from lorkd_deploy.metrics.interval import Interval, around
from lorkd_deploy.metrics.score import Kind, Metric, probabilities
from lorkd_deploy.schema import Part

LARGEST = 10.0  # and its inverse the smallest temperature: beyond, it is no matter of calibration
_HALVINGS = 60
_SAME = 1e-3  # below that a temperature changes nothing that anybody could see


class Sureness(Part):
    """How well probabilities say how often they are right, on a split, with 95 % intervals.

    `calibration_error` is `metrics.decisions.calibration_error`, `brier` the score of Brier (1950):
    the mean squared distance of the probabilities from the truth, summed over classes; of a
    multi-label task the mean over findings.
    """

    calibration_error: Interval
    brier: Interval


class Temperature(Part):
    """A task's temperature, fitted on so many validation `images`, and what it did to the test
    split's probabilities. `value` is the whole one, where it was fitted more than once.
    """

    value: float
    images: int
    before: Sureness
    after: Sureness


def fitted_temperature(logits: F64, labels: I64, kind: Kind, earlier: float = 1.0) -> float:
    """The T > 0 that minimises the negative log-likelihood of `logits / T`.

    `earlier` is what the logits were divided by already: both together stay within 1/10 … 10.

    `logits` `(N, K)`, `labels` as `metrics.score` takes them. 1 where the images can't tell: there
    are none, or each is answered rightly, so that every smaller T would look better. 1 too where
    no other is better by anything that could be seen.
    """
    z = np.asarray(logits, np.float64)
    truth = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(z.shape[1])
    wrong = (z > 0) != truth if kind == "multilabel" else z.argmax(axis=1) != labels
    if not len(z) or not wrong.any():
        return 1.0

    def slope(beta: float) -> float:  # of the likelihood, which is convex in beta = 1 / T
        return float((z * (probabilities(beta * z, kind) - truth)).sum())

    low, high = np.log(earlier) - np.log(LARGEST), np.log(earlier) + np.log(LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    found = float(np.exp(-(low + high) / 2))
    return 1.0 if abs(found - 1) < _SAME else found


def sureness(logits: F64, labels: I64, kind: Kind) -> Sureness:
    """Calibration error and Brier score of `logits` `(N, K)`, N ≥ 1."""
    probs = probabilities(logits, kind)
    return Sureness(
        calibration_error=around(calibration_error, labels, probs),
        brier=around(brier, labels, probs),
    )


def _brier(labels: I64, probs: F64, counts: F64) -> F64:
    if labels.ndim == 2:
        each = ((probs - labels) ** 2).mean(axis=1)
    else:
        truth = labels[:, None] == np.arange(probs.shape[1])
        each = ((probs - truth) ** 2).sum(axis=1)
    return np.asarray(counts @ each / counts.sum(axis=1), np.float64)


brier = Metric("brier", _brier)
