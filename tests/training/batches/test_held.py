"""Batches that a GPU gathers from a training set it holds: those that the CPU makes, on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_deploy.arrays import U8
from lorkd_deploy.data import Split
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.training.batches import held as module
from lorkd_deploy.training.batches.held import Held, fits
from lorkd_deploy.training.batches.loader import Augment, Images, Loader
from lorkd_deploy.training.batches.sampler import MixedSampler

CPU = torch.device("cpu")
SIZES = (20, 5, 1)


def _tasks() -> list[Images]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 256, (size, 12, 12, 3), dtype=np.uint8) for size in SIZES]
    return [Images(Split(images, np.arange(len(images))), Preprocess(size=12)) for images in drawn]


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.45])
@pytest.mark.parametrize("flip", [True, False])
def test_they_have_the_same_pixels(flip: bool, shift: float, share: tuple[int, int]) -> None:
    tasks, augment = _tasks(), Augment(flip=flip, shift=shift, seed=3)
    sampler = MixedSampler(SIZES, batch_size=8, temperature=1, seed=0, steps=6)
    images = [task.held for task in tasks if task.held is not None]
    by_cpu = Loader(tasks, sampler, augment, share=share)
    gathered = Loader(tasks, sampler, augment, share=share, held=Held(images, CPU))
    lacking = set()
    for known, found in zip(by_cpu.batches(), gathered.batches(), strict=True):
        assert isinstance(found.images, torch.Tensor)
        np.testing.assert_array_equal(found.images.numpy(), known.images)
        for name in ("labels", "indices", "flips"):
            for one, other in zip(getattr(found, name), getattr(known, name), strict=True):
                np.testing.assert_array_equal(one, other)
        assert found.counts == known.counts
        assert found.absent == known.absent
        part, other_part = found.split(2)[-1], known.split(2)[-1]
        np.testing.assert_array_equal(np.asarray(part.images), other_part.images)
        lacking |= {*found.absent}
    assert lacking, "the smallest task is absent now and then"


def test_a_task_that_another_process_has_is_not_absent() -> None:
    tasks = _tasks()
    sampler = MixedSampler(SIZES, batch_size=8, temperature=1, seed=0, steps=6)
    augment = Augment(flip=False, shift=0, seed=0)
    halves = [Loader(tasks, sampler, augment, share=(index, 2)) for index in range(2)]
    for step in range(6):
        one, other = (half.at(step) for half in halves)
        together = np.add(one.counts, other.counts)
        assert one.absent == other.absent == tuple(np.flatnonzero(together == 0))


def test_what_fits_is_held_and_no_cpu_holds_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[U8] = [np.zeros((10, 8, 8, 3), np.uint8)] * 2
    room: Any = SimpleNamespace(cuda=SimpleNamespace(mem_get_info=lambda _: (7680, 10000)))
    monkeypatch.setattr(module, "torch", room)
    gpu = torch.device("cuda", 0)
    assert fits(images, gpu)  # 3840 bytes, half of what is free
    assert not fits([*images, images[0]], gpu)
    assert not fits([*images[:1], None], gpu)
    assert not fits(images, CPU)
