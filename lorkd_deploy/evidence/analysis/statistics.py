"""What several trainings of each method show: differences paired by image and by seed.

A method is trained once per seed and each training answers the same test images, so a figure varies
for two reasons: which images the test set happens to hold, and which seed a training had. An
interval over images alone says nothing of the second: a difference "beyond the interval" has come
out with the other sign in a second training. Here both are resampled together. Five seeds make
such a bootstrap narrow, so a t-interval over the seeds stands beside it, and the wider one decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.metrics.score import Metric
from lorkd_deploy.schema import Part

Verdict = Literal["better", "worse", "not shown"]

RARE = 30  # images, or groups, of a class below which resamples are drawn within classes
_BLOCK = 1 << 21  # resampled images held at a time: 16 MiB of float64


@dataclass(frozen=True)
class Resampled:
    """A figure of one method: `values` `(S,)`, one per seed, and `draws` `(B, S)`.

    Row `b` of `draws` is the figure on the `b`-th resample of the test images. Two methods on the
    same images have the same resamples, so their rows can be subtracted.
    """

    values: F64
    draws: F64

    def __sub__(self, other: Resampled) -> Resampled:
        """The difference, paired by seed and resample."""
        return Resampled(self.values - other.values, self.draws - other.draws)


class Estimate(Part):
    """A mean over seeds with what is known of it.

    `bootstrap` resamples seeds and images together; `t` is Student's interval over the seeds, and
    None for a single one. `p` is the two-sided p-value of a mean of 0 that belongs to the interval
    that decides, 1 where none does.
    """

    value: float
    bootstrap: Interval
    t: Interval | None
    p: float

    @property
    def interval(self) -> Interval | None:
        """The wider of the two; None where a single seed leaves open what another would give."""
        if self.t is None:
            return None
        wider = self.t.high - self.t.low > self.bootstrap.high - self.bootstrap.low
        return self.t if wider else self.bootstrap


def resampled(
    metric: Metric,
    labels: npt.NDArray[Any],
    probs: F64,
    *,
    groups: npt.NDArray[Any] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Resampled:
    """`metric` of the answers `probs` `(S, N, K)` of S seeds, on `n` resamples of the images.

    `groups` `(N,)` numbers the patients or cases of the images: whole groups are then resampled,
    since pictures of one patient are alike. Equal labels, groups, `n` and `seed` give equal
    resamples.
    """
    labels = np.asarray(labels, np.int64)
    values = np.array([metric(labels, one) for one in probs])
    blocks = [
        np.stack([metric.weighted(labels, one, counts) for one in probs], axis=1)
        for counts in image_counts(labels, groups, n, seed)
    ]
    return Resampled(values, np.concatenate(blocks))


def image_counts(labels: I64, groups: npt.NDArray[Any] | None, n: int, seed: int) -> Iterator[F64]:
    """How often each image is drawn in each of `n` resamples, in blocks `(≤ n, N)`.

    Where a class has fewer than `RARE` images or groups, each class is resampled by itself: else
    some resamples would have hardly any of it, or none, and the macro AUC would jump with them.
    """
    images = len(labels)
    known, unit = (np.arange(images),) * 2 if groups is None else _numbered(groups)
    strata = _strata(labels, unit, len(known))
    generators = [np.random.default_rng((seed, number)) for number in range(len(strata))]
    rows = max(1, _BLOCK // images)
    for start in range(0, n, rows):
        counts = np.empty((min(rows, n - start), len(known)))
        for members, rng in zip(strata, generators, strict=True):
            share = np.full(len(members), 1 / len(members))
            counts[:, members] = rng.multinomial(len(members), share, size=len(counts))
        yield counts[:, unit]


def _numbered(groups: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], I64]:
    names, unit = np.unique(np.asarray(groups).reshape(-1), return_inverse=True)
    return names, np.asarray(unit, np.int64)


def _strata(labels: I64, unit: I64, units: int) -> list[I64]:
    """Which units are resampled among themselves: all, or where a class is rare each class's.

    A unit counts for the rarest class that any of its images shows.
    """
    shown = labels if labels.ndim == 2 else np.eye(labels.max() + 1, dtype=np.int64)[labels]
    shows = np.zeros((units, shown.shape[1]), bool)
    np.logical_or.at(shows, unit, shown > 0)
    having = shows.sum(axis=0)
    if not ((having > 0) & (having < RARE)).any():
        return [np.arange(units)]
    rarest = np.where(shows, having, units + 1).argmin(axis=1)
    rarest[~shows.any(axis=1)] = -1  # a multi-label image without a finding
    return [np.flatnonzero(rarest == one) for one in np.unique(rarest)]


def over_tasks(each: Sequence[Resampled]) -> Resampled:
    """The mean over tasks of a figure, seed by seed and resample by resample."""
    return Resampled(
        np.mean([task.values for task in each], axis=0),
        np.mean([task.draws for task in each], axis=0),
    )


def estimate(figure: Resampled, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean over seeds of a figure, or of the difference of two, with both intervals.

    The images of a resample are the same for all seeds, as they are in the study itself; so seeds
    don't average the images' part away.
    """
    rng = np.random.default_rng((seed, 1))
    seeds = len(figure.values)
    value = float(figure.values.mean())
    drawn = rng.integers(0, seeds, figure.draws.shape)
    means = np.take_along_axis(figure.draws, drawn, axis=1).mean(axis=1)
    means = means[~np.isnan(means)]
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    beyond = int(min((means <= 0).sum(), (means >= 0).sum()))
    bootstrap = Interval(value=value, low=float(low), high=float(high))
    if seeds < 2:
        return Estimate(value=value, bootstrap=bootstrap, t=None, p=1.0)
    t, p = _student(figure.values, level)
    both = Estimate(value=value, bootstrap=bootstrap, t=t, p=p)
    if both.interval is t:
        return both
    return both.model_copy(update={"p": min(1.0, 2 * (beyond + 1) / (len(means) + 1))})


def _student(values: F64, level: float) -> tuple[Interval, float]:
    value = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, len(values) - 1)) if error else float(value == 0)
    return Interval(value=value, low=value - half, high=value + half), p


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), whatever they have to do with each other."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in corrected]


def verdict(difference: Estimate, p: float, *, level: float = 0.95) -> Verdict:
    """What may be said of a difference whose corrected p-value is `p`.

    Only where the whole deciding interval lies on one side of 0 and `p` is small enough too.
    """
    interval = difference.interval
    if interval is None or p > 1 - level:
        return "not shown"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "not shown"


def seeds_needed(figure: Resampled, *, level: float = 0.95, most: int = 1000) -> int | None:
    """How many seeds would show a difference of this size, if it and its spread stayed as they are.

    Both intervals of so many seeds are reckoned from three parts: what the test images do to all
    seeds alike, which more seeds don't take away, what they do to each seed, and the seeds' own
    spread. None where more seeds wouldn't: the first part alone leaves the sign open, or it would
    take more than `most`; and where there are fewer than two seeds to tell the spread by.
    """
    known = len(figure.values)
    if known < 2:
        return None
    value, spread = abs(float(figure.values.mean())), float(figure.values.var(ddof=1))
    within = float(np.nanmean(figure.draws.var(axis=1, ddof=1)))  # of seeds in one resample
    each = max(0.0, within - spread)
    alike = max(0.0, float(np.nanvar(figure.draws.mean(axis=1))) - each / known)
    normal = float(stats.norm.ppf((1 + level) / 2))
    for seeds in range(2, most + 1):
        t = float(stats.t.ppf((1 + level) / 2, seeds - 1)) * math.sqrt(spread / seeds)
        drawn = within * (seeds - 1) / seeds  # seeds drawn again vary by so much less
        bootstrap = normal * math.sqrt(alike + (each + drawn) / seeds)
        if max(t, bootstrap) < value:
            return seeds
    return None
