"""Dividing images into splits."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.data.dividing import divide

SHARES = (0.7, 0.1, 0.2)


def drawn(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """3,000 labels of three classes, 80 : 15 : 5, and the groups of their images."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 3000, p=[0.8, 0.15, 0.05])
    return labels, rng.integers(0, groups, 3000)


@pytest.mark.parametrize("groups", [60, 800, 100_000])
def test_groups_stay_whole_and_classes_keep_their_shares(groups: int) -> None:
    labels, group = drawn(groups)
    split = divide(labels, group, SHARES, seed=1)
    for one in np.unique(group):
        assert len(set(split[group == one])) == 1
    counts = np.array([np.bincount(labels[split == number], minlength=3) for number in range(3)])
    wanted = np.outer(SHARES, np.bincount(labels))
    slack = 3 * np.sqrt(wanted) if groups == 60 else 4
    assert (np.abs(counts - wanted) <= slack).all()


def test_without_groups_shares_are_exact_and_the_seed_decides() -> None:
    labels, _ = drawn(1)
    split = divide(labels, None, SHARES, seed=1)
    counts = np.array([np.bincount(labels[split == number], minlength=3) for number in range(3)])
    assert (np.abs(counts - np.outer(SHARES, np.bincount(labels))) <= 1).all()
    assert (split == divide(labels, None, SHARES, seed=1)).all()
    assert (split != divide(labels, None, SHARES, seed=2)).any()


def test_findings_are_kept_in_proportion() -> None:
    rng = np.random.default_rng(0)
    findings = (rng.random((2000, 4)) < [0.3, 0.1, 0.02, 0.5]).astype(np.int64)
    split = divide(findings, rng.integers(0, 700, 2000), (0.8, 0.2), seed=0)
    shares = findings[split == 1].sum(axis=0) / findings.sum(axis=0)
    assert (np.abs(shares - 0.2) < 0.05).all()
