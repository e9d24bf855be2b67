"""Training batches: images fetched ahead of the step by threads, augmented, normalised once.

One thread per batch fetches and augments; the images of all of them are read and resized by one
pool, as many at a time as there are CPUs, those of the next batch first.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data import Split
from lorkd_deploy.experts import Route, route_of_counts
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import AugmentSpec
from lorkd_deploy.training.batches.augment import augmented
from lorkd_deploy.training.batches.held import Held, Moves
from lorkd_deploy.training.batches.sampler import Draw, MixedSampler

IN_MEMORY = 2 << 30  # bytes of resized images held; above it they are read each time
CHUNK = 8  # images that a thread makes before another may take its turn
MOST_AHEAD = 8  # batches in memory


def threads() -> int:
    """How many threads read images: as many as this process has CPUs for."""
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # with the machine's other processes
    return max(1, usable_cpus() // shared)


@cache
def _readers(process: int) -> ThreadPoolExecutor:
    """The pool of a process by its id: one that was forked has none of its parent's threads."""
    return ThreadPoolExecutor(threads(), "lorkd-reader")


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which each operation of torch takes one thread.

    With teams of their own they stand in the way of the training step's: turning its images made a
    training on two CPUs half as fast (`benchmarks/loader.py`).
    """
    elsewhere = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            workers, "lorkd-loader", initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(elsewhere)  # else a thread that starts later would have 1, too


def bytes_of(images: int, preprocess: Preprocess) -> int:
    """What so many images at network size take."""
    return images * preprocess.size**2 * 3


class Images:
    """A split's images at network size, in memory where `hold` says so and they fit, else made on
    request."""

    def __init__(self, split: Split, preprocess: Preprocess, *, hold: bool = True) -> None:
        self.split = split
        self.labels = np.asarray(split.labels)
        self._preprocess = preprocess
        self.held: U8 | None = None  # all of them, where they are to stay
        if hold and bytes_of(len(split.images), preprocess) <= IN_MEMORY:
            self.held = self._make(np.arange(len(split.images)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: I64) -> U8:
        """uint8 `(len(indices), size, size, 3)`."""
        return self._make(indices) if self.held is None else self.held[indices]

    def _make(self, indices: I64) -> U8:
        side = self._preprocess.size
        out = np.empty((len(indices), side, side, 3), np.uint8)

        def fill(start: int) -> None:
            for place, index in enumerate(indices[start : start + CHUNK], start):
                out[place] = self._preprocess.geometry(self.split.images[int(index)])

        for _ in _readers(os.getpid()).map(fill, range(0, len(indices), CHUNK)):
            pass  # the first image that can't be read raises
        return out


@dataclass(frozen=True)
class Batch:
    """One mixed batch in task order, still uint8: `(N, S, S, 3)`; the rest is one entry per task.

    `indices` are the images' places in their training split, `flips` which of them are mirrored,
    `total` the samples of the whole batch: more than these in a part of it, or where other
    processes have the rest. `absent` are the tasks that the whole batch has no sample of. The
    images are a tensor on the GPU where all training images are held there (`held.py`).
    """

    step: int
    images: U8 | Tensor
    labels: tuple[I64, ...]
    indices: tuple[I64, ...]
    flips: tuple[npt.NDArray[np.bool_], ...]
    total: int
    absent: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each task, 0 where it is absent."""
        return tuple(len(indices) for indices in self.indices)

    def route(self, device: torch.device) -> Route:
        """What a network and its heads take for `task`: from the counts, so no GPU is waited for.

        `device` is that of the network's input.
        """
        return route_of_counts(self.counts, device)

    @property
    def share(self) -> float:
        """This batch's weight in a mean over the whole one, of which it may be a part."""
        return len(self.images) / self.total

    def split(self, parts: int) -> list[Batch]:
        """The batch in at most `parts`, each with its share of every task, none empty."""
        if parts == 1:
            return [self]
        return [self._every(parts, first) for first in range(min(parts, len(self.images)))]

    def _every(self, stride: int, first: int) -> Batch:
        chosen = np.arange(first, len(self.images), stride)
        ends = np.cumsum(self.counts)
        per_task = np.split(chosen, np.searchsorted(chosen, ends)[:-1])
        own = [places - start for places, start in zip(per_task, ends - self.counts, strict=True)]
        labels, indices, flips = (
            tuple(values[places] for values, places in zip(each, own, strict=True))
            for each in (self.labels, self.indices, self.flips)
        )
        return replace(
            self, images=self.images[chosen], labels=labels, indices=indices, flips=flips
        )


@dataclass(frozen=True)
class Augment:
    """Per-image changes, drawn from the seed and the step alone."""

    flip: bool
    shift: float
    seed: int
    transforms: tuple[AugmentSpec, ...] = ()

    def drawn(self, step: int, places: I64, total: int, side: int) -> Moves:
        """How the images at `places` in the step's batch of `total`, `side` px wide, are moved: an
        image is moved alike, whichever process has it.
        """
        rng = np.random.default_rng((self.seed, 2, step))
        flips = (rng.random(total) < 0.5)[places] & self.flip
        reach = round(self.shift * side)
        offsets = rng.integers(0, 2 * reach + 1, (total, 2))[places] if reach else None
        return Moves(flips, offsets, reach)

    def __call__(
        self, images: U8, step: int, places: I64, total: int
    ) -> tuple[U8, npt.NDArray[np.bool_]]:
        """The changed images, and which of them are mirrored `(N,)`."""
        flips, offsets, reach = self.drawn(step, places, total, images.shape[1])
        images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
        if offsets is not None:
            images = _shifted(images, offsets, reach)
        if self.transforms:
            images = augmented(images, self.transforms, self.seed, step, places)
        return images, flips


def _shifted(images: U8, offsets: I64, reach: int) -> U8:
    side = images.shape[1]
    border = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    wide = np.pad(images, border, mode="reflect")
    out = np.empty_like(images)
    for place, (top, left) in enumerate(offsets):
        out[place] = wide[place, top : top + side, left : left + side]
    return out


class Loader:
    """Iterates the sampler's batches, as many prepared ahead as `threads()`, 3 to `MOST_AHEAD`.

    With `share` (i, n) it fetches the i-th of every n samples of a batch, so that each of n
    processes has its part of every task. Where all images are `held` on a GPU, which knows no
    `Augment.transforms`, batches are made there. `waiting` is the time in seconds that the training
    loop has waited for a batch.
    """

    def __init__(
        self,
        tasks: Sequence[Images],
        sampler: MixedSampler,
        augment: Augment,
        *,
        share: tuple[int, int] = (0, 1),
        held: Held | None = None,
    ) -> None:
        self._tasks = tasks
        self._sampler = sampler
        self._augment = augment
        self._ahead = min(max(3, threads()), MOST_AHEAD)
        self._first, self._every = share
        self._held = held
        self.waiting = 0.0

    def batch(self, draw: Draw) -> Batch:
        """Fetch and augment the images of one draw that are this process's."""
        total, everywhere = sum(draw.counts), draw.counts
        places = np.arange(self._first, total, self._every)
        draw = draw.part(places)
        chosen = list(zip(self._tasks, draw.indices, strict=True))
        labels = tuple(task.labels[indices] for task, indices in chosen)
        images: U8 | Tensor
        if self._held is not None:
            moves = self._augment.drawn(draw.step, places, total, self._held.side)
            images, flips = self._held.batch(draw.indices, moves), moves.flips
        else:
            images = np.concatenate([task[indices] for task, indices in chosen])
            images, flips = self._augment(images, draw.step, places, total)
        flipped = tuple(np.split(flips, np.cumsum(draw.counts)[:-1]))
        absent = tuple(task for task, count in enumerate(everywhere) if not count)
        return Batch(draw.step, images, labels, draw.indices, flipped, total, absent)

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        return self.batch(self._sampler[step])

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches of the steps from `first` to the sampler's last."""
        with _pool(self._ahead) as pool:
            pending: deque[Future[Batch]] = deque()
            upcoming = iter(range(first, len(self._sampler)))
            try:
                while True:
                    while len(pending) < self._ahead and (step := next(upcoming, None)) is not None:
                        pending.append(pool.submit(self.batch, self._sampler[step]))
                    if not pending:
                        return
                    began = time.perf_counter()
                    ready = pending.popleft().result()
                    self.waiting += time.perf_counter() - began
                    yield ready
            finally:
                for future in pending:
                    future.cancel()
