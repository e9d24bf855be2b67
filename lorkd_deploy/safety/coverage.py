"""Sets that hold the right class as often as promised (split conformal prediction, Vovk et al.
2005; the score is 1 − p of the right class, Sadinle et al. 2019).

What n held-out images promise is exact on average over such images, and for these n it lies within
the interval that `promise` gives. It holds for images of the kind that the held-out ones are, and
for all images together: not for each class, and not for what the guard calls outside.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.errors import UsageError
from lorkd_deploy.metrics.interval import Interval, of_mean
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.schema import Part

REPORTED = (0.9, 0.95)  # the coverages that are tried on the test split


class Covered(Part):
    """What came of one promised `coverage` on the test split: how often the set held the truth, and
    how many images were referred to a person; with 95 % intervals.
    """

    coverage: float
    found: Interval
    referred: Interval


class Coverage(Part):
    """A task's promise rests on so many held-out `images`; `tested` is what came of it."""

    images: int
    tested: tuple[Covered, ...]


def nonconformity(probs: F64, labels: I64) -> F64:
    """How badly each image fits the answer, `(N,)`, 0 … 1; 1 − p of the right class.

    Of a multi-label task the worst finding's: its set is right where all findings' are.
    """
    if labels.ndim == 2:
        return np.asarray((1 - np.where(labels == 1, probs, 1 - probs)).max(axis=1), np.float64)
    return np.asarray(1 - probs[np.arange(len(labels)), labels], np.float64)


def quantile(scores: npt.NDArray[np.floating], coverage: float) -> float:
    """The ⌈(n + 1) · coverage⌉-th smallest of n held-out `scores`.

    Raises `UsageError` for a coverage that isn't within 0 … 1, or that n images can't promise.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage is {coverage:g}, wanted a share between 0 and 1, such as 0.95")
    rank = rank_of(len(scores), coverage)
    if rank > len(scores):
        raise UsageError(
            f"{len(scores)} held-out validation images can't promise a coverage of {coverage:g}",
            fix=f"ask for at most {most(len(scores)):.3g}, or train with more validation images",
        )
    return float(np.sort(scores)[rank - 1])


def most(images: int) -> float:
    """The largest coverage that so many held-out images can promise."""
    return images / (images + 1)


def promise(images: int, coverage: float) -> tuple[float, float]:
    """Between which bounds the coverage over all future images lies, with 95 % confidence.

    Over the draw of the n held-out images it is Beta(k, n + 1 − k) with k = ⌈(n + 1) · coverage⌉
    (Vovk 2012).
    """
    return rank_interval(images, rank_of(images, coverage))


def rank_interval(images: int, rank: int) -> tuple[float, float]:
    """The 95 % interval of the share of future values below the `rank`-th smallest of n."""
    return _beta_quantile(images, rank, 0.025), _beta_quantile(images, rank, 0.975)


def answer_sets(probs: F64, limit: float, kind: Kind) -> npt.NDArray[np.bool_]:
    """What can't be ruled out: classes `(N, K)`, or of a multi-label task `(N, L, 2)`: the absence
    and the presence of each finding. `limit` is `quantile`'s.
    """
    if kind == "multilabel":
        probs = np.stack([1 - probs, probs], axis=2)
    return np.asarray(1 - probs <= limit, np.bool_)


def referred(sets: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which images, `(N,)`, a person has to read: those whose set isn't one answer."""
    several = sets.sum(axis=-1) != 1
    return np.asarray(several.any(axis=1) if several.ndim == 2 else several, np.bool_)


def outcomes(probs: F64, labels: I64, kind: Kind, scores: F64) -> tuple[Covered, ...]:
    """What came of each of the `REPORTED` coverages that held-out `scores` can promise, on a
    split's `probs` `(N, K)` and `labels`."""
    found = []
    right = nonconformity(probs, labels)
    for coverage in (c for c in REPORTED if c <= most(len(scores))):
        limit = quantile(scores, coverage)
        sides = right <= limit, referred(answer_sets(probs, limit, kind))
        covered, asked = (of_mean(side.astype(np.float64)) for side in sides)
        found.append(Covered(coverage=coverage, found=covered, referred=asked))
    return tuple(found)


def rank_of(images: int, coverage: float) -> int:
    """Which of the ascending scores of `images` covers another one's with `coverage`, from 1."""
    return math.ceil((images + 1) * coverage - 1e-9)  # 0.95 · 20 is 19, not a hair more


def _beta_quantile(images: int, rank: int, share: float) -> float:
    """Of Beta(rank, n + 1 − rank), by halving: it is below x where at least `rank` of n draws are.

    1 for a rank above n: what was never seen is not ruled out.
    """
    if rank > images:
        return 1.0
    k = np.arange(rank, images + 1)
    choose = np.array([math.lgamma(images + 1) - math.lgamma(i + 1) - math.lgamma(images - i + 1)
                       for i in k])  # fmt: skip
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        below = float(np.exp(choose + k * math.log(x) + (images - k) * math.log1p(-x)).sum())
        low, high = (x, high) if below < share else (low, x)
    return (low + high) / 2
