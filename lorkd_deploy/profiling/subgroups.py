"""The answers by what is known of the patients: each value of an attribute, and the largest gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.data import Attribute
from lorkd_deploy.metrics.decisions import decided
from lorkd_deploy.metrics.interval import where_defined
from lorkd_deploy.metrics.score import Metric
from lorkd_deploy.profiling.profile import Gap, Quality, Subgroup

FEWEST = 30  # images; fewer are too few to tell
PERMUTATIONS = 2000
_CHUNK = 1 << 21  # permuted images held at a time: 16 MiB of float64

Attributes = Mapping[str, Attribute]


def subgroups(
    measures: Sequence[Metric], labels: I64, probabilities: F64, attributes: Attributes
) -> tuple[Subgroup, ...]:
    """The measures of each value of each attribute; of fewer than 30 images, their number alone."""
    found = []
    for name, attribute in attributes.items():
        for code, value in enumerate(attribute.values):
            own = np.flatnonzero(attribute.codes == code)
            quality = None
            if len(own) >= FEWEST:
                each = {m.name: where_defined(m, labels[own], probabilities[own]) for m in measures}
                quality = Quality.model_validate(each)
            found.append(Subgroup(attribute=name, value=value, images=len(own), quality=quality))
    return tuple(found)


def gaps(labels: I64, probabilities: F64, attributes: Attributes) -> tuple[Gap, ...]:
    """The largest gap in accuracy of each attribute that has two values of 30 images or more.

    `p` is how often a gap as large comes up, in any attribute and between any two values, when
    images and attributes are matched at random: corrected for their number (Westfall & Young 1993,
    max T). Images are taken as independent.
    """
    hits = decided(probabilities, labels) == labels
    right = hits.astype(np.float64) if hits.ndim == 1 else hits.mean(axis=1)
    shares = {name: _shares(attribute) for name, attribute in attributes.items()}
    shares = {name: share for name, share in shares.items() if (share.sum(axis=0) > 0).sum() > 1}
    if not shares:
        return ()
    chance = _by_chance(right, list(shares.values()))
    found = []
    for name, share in shares.items():
        means = np.where(share.sum(axis=0) > 0, right @ share, np.nan)
        best, worst = int(np.nanargmax(means)), int(np.nanargmin(means))
        gap = float(means[best] - means[worst])
        beyond = int((chance >= gap - 1e-12).sum())
        found.append(
            Gap(
                attribute=name,
                best=attributes[name].values[best],
                worst=attributes[name].values[worst],
                accuracy=gap,
                p=(beyond + 1) / (len(chance) + 1),
            )
        )
    return tuple(found)


def _shares(attribute: Attribute) -> F64:
    """`(N, V)`: what each image counts in the mean of its value; 0 where there are too few."""
    own = attribute.codes[:, None] == np.arange(len(attribute.values))
    counts = own.sum(axis=0)
    return np.asarray(own * np.where(counts >= FEWEST, 1 / np.maximum(counts, 1), 0), np.float64)


def _by_chance(right: F64, shares: Sequence[F64]) -> F64:
    """The largest gap of any attribute in each of `PERMUTATIONS` random matchings."""
    rng = np.random.default_rng(0)
    largest = []
    rows = max(1, _CHUNK // len(right))
    for start in range(0, PERMUTATIONS, rows):
        count = min(rows, PERMUTATIONS - start)
        mixed = rng.permuted(np.broadcast_to(right, (count, len(right))), axis=1)
        each = []
        for share in shares:
            means = (mixed @ share)[:, share.sum(axis=0) > 0]
            each.append(means.max(axis=1) - means.min(axis=1))
        largest.append(np.max(each, axis=0))
    return np.concatenate(largest)
