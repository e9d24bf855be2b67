"""Which image goes into which split: classes in proportion, groups whole, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I64


def divide(labels: I64, groups: I64 | None, shares: Sequence[float], seed: int) -> I64:
    """The split's number of each image `(N,)`, of `len(shares)` splits.

    `labels` is `(N,)` class numbers or `(N, L)` findings, `groups` `(N,)` the numbers of patients
    or cases, each of which lies in one split whole. Groups of several images are placed one by one,
    the largest first, each where it is missing most, as scikit-learn's `StratifiedGroupKFold` does;
    single images then fill every split up, class by class.
    """
    shown = labels.astype(np.float64) if labels.ndim == 2 else np.eye(labels.max() + 1)[labels]
    shown = np.column_stack([shown, np.ones(len(shown))])  # the last column: how many images
    wanted = np.asarray(shares, np.float64)[:, None] / sum(shares) * shown.sum(axis=0)
    rng = np.random.default_rng(seed)
    assigned = np.full(len(labels), -1, np.int64)
    if groups is not None:
        _place_groups(groups, shown, wanted, assigned, rng)
    _place_singles(labels, shown, wanted, assigned, rng)
    return assigned


def _place_groups(
    groups: I64, shown: F64, wanted: F64, assigned: I64, rng: np.random.Generator
) -> None:
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    starts = np.cumsum(sizes) - sizes
    several = np.flatnonzero(sizes > 1)
    several = several[rng.permutation(len(several))]
    scale = np.maximum(wanted.sum(axis=0), 1)
    for group in several[np.argsort(-sizes[several], kind="stable")]:
        members = order[starts[group] : starts[group] + sizes[group]]
        has = shown[members].sum(axis=0)
        # What is missing in a split after the group has come: least squares over all splits.
        gain = ((2 * wanted - has) * has / scale**2).sum(axis=1)
        chosen = int(np.argmax(gain))
        assigned[members] = chosen
        wanted[chosen] -= has


def _place_singles(
    labels: I64, shown: F64, wanted: F64, assigned: I64, rng: np.random.Generator
) -> None:
    left = np.flatnonzero(assigned < 0)
    _, kinds = np.unique(labels[left], axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    for kind in np.unique(kinds):
        members = left[kinds == kind]
        members = members[rng.permutation(len(members))]
        has = shown[members[0]].astype(bool)
        need = np.maximum(wanted[:, has].min(axis=1), 0)
        if not need.sum():
            need = np.maximum(wanted[:, -1], 0) + 1e-9
        counts = _whole(need / need.sum() * len(members))
        assigned[members] = np.repeat(np.arange(len(counts)), counts)
        wanted -= np.outer(counts, shown[members[0]])


def _whole(parts: npt.NDArray[np.float64]) -> I64:
    """`parts` in whole numbers with the same sum, the largest remainders first."""
    counts = np.floor(parts).astype(np.int64)
    missing = round(parts.sum()) - int(counts.sum())
    counts[np.argsort(-(parts - counts), kind="stable")[:missing]] += 1
    return counts
