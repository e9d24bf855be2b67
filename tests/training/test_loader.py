"""Batches: the right images with the right labels, the same for every run of a seed."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.data import Split
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.training import loader as module
from lorkd_deploy.training.loader import Augment, Images, Loader
from lorkd_deploy.training.sampler import MixedSampler

PREPROCESS = Preprocess(size=8)


def _split(count: int, offset: int) -> Split:
    """Image i is uniformly of value `offset + i` and has label i."""
    images = np.arange(count, dtype=np.uint8)[:, None, None] + np.full((1, 8, 8), offset, np.uint8)
    return Split(images, np.arange(count))


def _loader(augment: Augment, steps: int = 6) -> Loader:
    tasks = [Images(_split(20, 0), PREPROCESS), Images(_split(5, 100), PREPROCESS)]
    sampler = MixedSampler([20, 5], batch_size=8, temperature=1, seed=0, steps=steps)
    return Loader(tasks, sampler, augment)


def test_images_and_labels_belong_together() -> None:
    for batch in _loader(Augment(flip=True, shift=0.25, seed=0)).batches():
        labels = np.concatenate(batch.labels)
        shown = batch.images[:, 0, 0, 0].astype(int) - 100 * batch.task
        np.testing.assert_array_equal(shown, labels)
        assert batch.images.shape == (8, 8, 8, 3)
        assert [len(r) for r in batch.rows] == [len(f) for f in batch.flips]
        np.testing.assert_array_equal(np.concatenate(batch.rows), labels)


def test_a_later_start_gives_the_same_later_batches() -> None:
    whole = list(_loader(Augment(flip=True, shift=0.2, seed=5)).batches())
    late = list(_loader(Augment(flip=True, shift=0.2, seed=5)).batches(first=4))
    assert [batch.step for batch in late] == [4, 5]
    for ours, theirs in zip(late, whole[4:], strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_flip_mirrors_about_half_and_shift_moves_within_reach() -> None:
    row = np.arange(8, dtype=np.uint8)
    images = np.broadcast_to(row[None, None, :, None], (400, 8, 8, 3)).copy()
    every = np.arange(400)
    flipped, flips = Augment(flip=True, shift=0.0, seed=0)(images, 3, every, 400)
    np.testing.assert_array_equal(flipped[:, 0, 0, 0] == 7, flips)
    assert 0.4 < flips.mean() < 0.6
    still, _ = Augment(flip=False, shift=0.0, seed=0)(images, 3, every, 400)
    np.testing.assert_array_equal(still, images)
    moved, _ = Augment(flip=False, shift=0.25, seed=0)(images, 3, every, 400)
    assert set(np.unique(moved[:, 0, 2, 0])) == {0, 1, 2, 3, 4}


def test_images_too_large_to_hold_are_made_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([3, 0, 3])
    held = Images(_split(5, 7), PREPROCESS)[rows]
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    made = Images(_split(5, 7), PREPROCESS)
    assert made._held is None
    np.testing.assert_array_equal(made[rows], held)
