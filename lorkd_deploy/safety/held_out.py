"""Which validation images choose, and which are kept to judge what was chosen.

A promise ("in 95 of 100 images the set holds the right class") is void where the images behind it
also chose the network's state or its temperature. So each task's validation split is halved once,
by the recipe's seed: one half selects, the other is held out for the guard's threshold and the
coverage's quantile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lorkd_deploy.arrays import I64


class Halves(NamedTuple):
    """Indices into a validation split, each int64 and ascending; no group is in both."""

    selection: I64
    held_out: I64


def halves(labels: I64, groups: I64 | None, seed: int) -> Halves:
    """Halve a validation split, every label (of a group: its first image's) as evenly as it goes.

    `labels` int64 `(N,)` or `(N, L)`, `groups` int64 `(N,)` the patients or cases where known:
    images of one are alike, so one group lies on one side. Of an odd number selection has one more,
    so that it shows every label that the split shows.
    """
    images = np.arange(len(labels))
    _, first, group = np.unique(
        images if groups is None else groups, return_index=True, return_inverse=True
    )
    kinds = np.unique(labels[first], axis=0, return_inverse=True)[1].reshape(-1)
    mixed = np.random.default_rng(seed).permutation(len(first))
    held_out = np.zeros(len(first), bool)
    for kind in range(kinds.max(initial=-1) + 1):
        held_out[mixed[kinds[mixed] == kind][1::2]] = True
    return Halves(images[~held_out[group]], images[held_out[group]])
