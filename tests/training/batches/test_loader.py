"""Batches: the right images with the right labels, the same for every run of a seed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_deploy.arrays import U8
from lorkd_deploy.data import Split
from lorkd_deploy.errors import ImageError
from lorkd_deploy.machine import processor
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.training.batches import loader as module
from lorkd_deploy.training.batches.loader import Augment, Batch, Images, Loader, threads
from lorkd_deploy.training.batches.sampler import Draw, MixedSampler
from lorkd_deploy.training.fitting.history import Fitted, write_history

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
        task = np.repeat([0, 1], batch.counts)
        shown = batch.images[:, 0, 0, 0].astype(int) - 100 * task
        np.testing.assert_array_equal(shown, labels)
        assert batch.images.shape == (8, 8, 8, 3)
        assert [len(r) for r in batch.indices] == [len(f) for f in batch.flips]
        np.testing.assert_array_equal(np.concatenate(batch.indices), labels)


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
    assert made.held is None
    np.testing.assert_array_equal(made[rows], held)


class Files(Sequence[U8]):
    """Images that are read at their own pace; reading number `bad` fails, as all after it do."""

    def __init__(self, bad: int = 200) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: Any) -> Any:
        time.sleep(0.001 * (index % 3))
        if index >= self.bad:
            raise ImageError(f"image {index}")
        return np.full((8, 8), index, np.uint8)


def test_images_that_threads_read_stay_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setattr(module, "_readers", lambda _: pool)
    rows = np.random.default_rng(0).permutation(200)
    with ThreadPoolExecutor(4) as pool:
        made = Images(Split(Files(), np.arange(200)), PREPROCESS)[rows]
        np.testing.assert_array_equal(made[:, 0, 0, 0], rows)
        with pytest.raises(ImageError, match="image 51"):  # the first in order, not in time
            Images(Split(Files(bad=51), np.arange(200)), PREPROCESS)[np.arange(200)]


def test_a_forked_process_reads_with_threads_of_its_own() -> None:
    """Those of its parent, which has read before, aren't there."""
    images = np.arange(100, dtype=np.uint8)[:, None, None] + np.zeros((1, 8, 8), np.uint8)
    parents = Images(Split(images, np.arange(100)), PREPROCESS).held
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later Pythons warn of the fork of a process with threads
        child = os.fork()
    if not child:
        signal.alarm(20)  # what hangs is ended by it
        made = Images(Split(images, np.arange(100)), PREPROCESS).held
        os._exit(int(not np.array_equal(made, parents)))
    assert os.waitpid(child, 0)[1] == 0


class FirstIsSlow(Loader):
    """Its first batch takes 5 s from when it is waited for, by a clock that nothing else moves."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.now = 0.0
        self.awaited = threading.Event()
        self.made = threading.Semaphore(0)

    def batch(self, draw: Draw) -> Batch:
        if draw.step == 0:
            assert self.awaited.wait(60)
            self.now += 5
        made = super().batch(draw)
        self.made.release()
        return made

    def clock(self) -> float:
        self.awaited.set()
        return self.now


def test_waiting_is_counted_and_the_next_batches_are_made_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = MixedSampler([20], batch_size=8, temperature=1, seed=0, steps=4)
    augment = Augment(flip=False, shift=0, seed=0)
    loader = FirstIsSlow([Images(_split(20, 0), PREPROCESS)], sampler, augment)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=loader.clock))
    batches = loader.batches()
    assert next(batches).step == 0
    assert loader.waiting == 5
    for _ in range(3):  # while the step has the first, two more are there though nobody asked
        assert loader.made.acquire(timeout=60)
    assert [batch.step for batch in batches] == [1, 2, 3]
    assert loader.waiting == 5


def test_torch_takes_one_thread_in_the_loaders_and_as_many_as_before_elsewhere() -> None:
    def of_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    seen = []

    class Watched(Loader):
        def batch(self, draw: Draw) -> Batch:
            seen.append(torch.get_num_threads())
            return super().batch(draw)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sampler = MixedSampler([20], batch_size=8, temperature=1, seed=0, steps=4)
        loader = Watched([Images(_split(20, 0), PREPROCESS)], sampler, Augment(False, 0, 0))
        for _ in loader.batches():
            assert torch.get_num_threads() == 3
        assert seen == [1] * 4
        assert of_new_thread() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_as_many_threads_as_this_process_has_cpus_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "allowed_cpus", lambda: 16)
    monkeypatch.setattr(processor, "cpu_limit", lambda *_: None)
    assert threads() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads() == 8
    monkeypatch.setattr(processor, "cpu_limit", lambda *_: 1.5)
    assert threads() == 1


@pytest.mark.parametrize(("seconds", "waiting", "level"), [(100, 6, "WARNING"), (100, 4, "DEBUG"),
    (1, 0.5, "DEBUG")])  # fmt: skip
def test_a_training_that_waited_too_long_is_warned_about(
    seconds: float, waiting: float, level: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lorkd_deploy")
    fitted = Fitted(10, [], seconds, waiting)
    write_history(tmp_path / "history.json", fitted, torch.device("cpu"), finished=False)
    assert not caplog.records
    write_history(tmp_path / "history.json", fitted, torch.device("cpu"), finished=True)
    (record,) = caplog.records
    assert record.levelname == level and f"{100 * waiting / seconds:.0f}" in record.getMessage()
