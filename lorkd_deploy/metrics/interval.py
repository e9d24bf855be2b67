"""How sure a figure is: its 95 % interval, by resampling images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64
from lorkd_deploy.metrics.score import Metric
from lorkd_deploy.schema import Part

_Z = 1.959964  # of a normal distribution 95 % lie within so many standard deviations
_MEAN = Metric("mean", lambda _, values, counts: counts @ values[:, 0] / counts.sum(axis=1))
_CHUNK = 1 << 21  # resampled images held at a time: 16 MiB of float64


class Interval(Part):
    """A measured value and the bounds between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Metric,
    labels: npt.NDArray[Any],
    probs: F64,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over images (Efron & Tibshirani 1993, chapter 13).

    Equal `n`, `seed` and number of images give equal resamples: differences can be paired.
    """
    labels = np.asarray(labels, np.int64)
    drawn = [metric.weighted(labels, probs, counts) for counts in resamples(len(labels), n, seed)]
    values = np.concatenate(drawn)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Interval(value=metric(labels, probs), low=float(low), high=float(high))


def around(metric: Metric, labels: npt.NDArray[Any], probs: F64) -> Interval:
    """`bootstrap`, widened where it misses the value: a resample repeats images and so looks worse
    calibrated than the split itself."""
    found = bootstrap(metric, labels, probs)
    low, high = min(found.low, found.value), max(found.high, found.value)
    return Interval(value=found.value, low=low, high=high)


def where_defined(metric: Metric, labels: npt.NDArray[Any], probs: F64) -> Interval | None:
    """`around`, or None where the metric is undefined on these labels."""
    return None if np.isnan(metric(labels, probs)) else around(metric, labels, probs)


def of_mean(values: F64) -> Interval:
    """The mean of one value per image, `(n,)`, n ≥ 1, none of them NaN."""
    return around(_MEAN, np.zeros(len(values), np.int64), values[:, None])


def resamples(images: int, n: int, seed: int) -> Iterator[F64]:
    """How often each image is drawn in each of `n` resamples, in blocks `(≤ n, images)`."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // images)
    for start in range(0, n, rows):
        block = min(rows, n - start)
        drawn = rng.integers(0, images, (block, images)) + np.arange(block)[:, None] * images
        counts = np.bincount(drawn.ravel(), minlength=block * images)
        yield counts.reshape(block, images).astype(np.float64)


def wilson(hits: int, of: int) -> Interval:
    """A share and its score interval (Wilson 1927), which is no point where all or none hit."""
    share, square = hits / of, _Z * _Z / of
    half = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of))
    ends = ((share + square / 2 + side * half) / (1 + square) for side in (-1, 1))
    low, high = (min(1.0, max(0.0, end)) for end in ends)
    return Interval(value=share, low=min(low, share), high=max(high, share))


def paired_shares(gained: float, lost: float, of: float) -> Interval:
    """The difference of two shares of the same `of` images, `gained` of them by the first alone and
    `lost` by the second alone, with its score interval (Tango 1998, equations 14 to 20).

    A bootstrap of few images that both answer alike says that the two never differ; this doesn't.
    """

    def score(difference: float) -> float:
        first = (2 * of - gained + lost) * difference - gained - lost
        root = first * first + 8 * of * lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, root)) - first) / (4 * of)  # of what the second alone gets
        variance = of * (2 * share + difference * (1 - difference))
        distance = gained - lost - of * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    value = (gained - lost) / of
    low, high = (_crossing(score, value, end) for end in (-1.0, 1.0))
    return Interval(value=value, low=low, high=high)


def _crossing(score: Callable[[float], float], inner: float, outer: float) -> float:
    """Where |score|, which grows from `inner` to `outer`, reaches `_Z`: by bisection."""
    for _ in range(60):
        middle = (inner + outer) / 2
        if abs(score(middle)) < _Z:
            inner = middle
        else:
            outer = middle
    return inner
