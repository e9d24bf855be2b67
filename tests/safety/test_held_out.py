from __future__ import annotations

import numpy as np

from lorkd_deploy.safety.held_out import halves


def test_the_halves_are_the_split_and_each_shows_every_label() -> None:
    labels = np.repeat([0, 1, 2], [20, 7, 2])
    selection, held_out = halves(labels, None, seed=3)
    assert sorted([*selection, *held_out]) == list(range(29))
    assert np.bincount(labels[selection]).tolist() == [10, 4, 1]
    assert np.bincount(labels[held_out]).tolist() == [10, 3, 1]


def test_another_seed_draws_another_half_and_the_same_seed_the_same() -> None:
    labels = np.zeros(100, np.int64)
    assert np.array_equal(halves(labels, None, 0).held_out, halves(labels, None, 0).held_out)
    assert not np.array_equal(halves(labels, None, 0).held_out, halves(labels, None, 1).held_out)


def test_no_patient_is_on_both_sides() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 200)
    labels = np.random.default_rng(1).integers(0, 3, 200)
    selection, held_out = halves(labels, groups, 0)
    assert not set(groups[selection]) & set(groups[held_out])
    assert 60 < len(held_out) < 140


def test_one_image_chooses_and_none_is_held_out() -> None:
    assert [len(half) for half in halves(np.array([1]), None, 0)] == [1, 0]


def test_several_findings_are_spread_by_what_is_found_together() -> None:
    labels = np.array([[0, 0], [0, 1], [1, 1]]).repeat(10, axis=0)
    selection, held_out = halves(labels, None, 0)
    assert labels[selection].sum(axis=0).tolist() == labels[held_out].sum(axis=0).tolist()
