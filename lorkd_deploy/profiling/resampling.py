"""One value per round, and how sure its median is: a 95 % interval by resampling rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorkd_deploy.arrays import F64
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.schema import Part

LEAST_ROUNDS = 5  # the median's range over n rounds covers 1 - 2^(1-n): 94 % with five
MARGIN = 0.02  # a ratio within 1 ± this is no difference
RESAMPLES = 2000
_SEED = 0


class Spread(Part):
    """One value per round, where each round is a process of its own; never trimmed."""

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """One value per round, summed up."""
    return Spread(
        median=float(np.median(values)),
        minimum=min(values),
        maximum=max(values),
        rounds=tuple(values),
    )


def spread_where_known(values: Sequence[float | None]) -> Spread | None:
    """`spread`, or None where a round has no value."""
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def resampled_medians(
    values: Sequence[float] | F64, generator: np.random.Generator | None = None
) -> F64:
    """Medians `(RESAMPLES,)` of as many values drawn from `values` with replacement.

    Without a `generator` always the same are drawn, so that what was measured in the same rounds
    stays paired.
    """
    given = np.asarray(values, np.float64)
    drawn = (generator or seeded()).integers(len(given), size=(RESAMPLES, len(given)))
    return np.asarray(np.median(given[drawn], axis=1), np.float64)


def seeded() -> np.random.Generator:
    """The generator that every interval over rounds is drawn with."""
    return np.random.default_rng(_SEED)


def by_rounds(values: Sequence[float] | F64, *, value: float) -> Interval:
    """`value` with the 95 % percentile-bootstrap interval of the median of one value per round."""
    # With five rounds it reaches from the smallest to the largest, which is 94 %. `value`, of
    # all calls together, may lie outside where rounds differ in their number of calls.
    low, high = np.percentile(resampled_medians(values), (2.5, 97.5))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
