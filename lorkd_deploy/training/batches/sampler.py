"""Which image of which task is in which step: a pure function of the seed and the step.

Nothing is carried from step to step, so a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lorkd_deploy.arrays import F64, I64

Int = I64


@dataclass(frozen=True)
class Draw:
    """One mixed batch in task order: `indices[t]` are training images of task `t`, maybe none."""

    step: int
    indices: tuple[Int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each task, 0 where it is absent."""
        return tuple(len(indices) for indices in self.indices)

    def part(self, places: Int) -> Draw:
        """The samples at `places` of the batch, ascending, as a batch of their own."""
        cuts = np.searchsorted(places, np.cumsum(self.counts))
        return Draw(self.step, tuple(np.split(np.concatenate(self.indices)[places], cuts[:-1])))


class MixedSampler:
    """Draws `batch_size` images per step across tasks by temperature.

    A task of `n` images is drawn with weight `n^(1 / temperature)`, so that a small task is not
    drowned by a large one. Within a task every image is seen once before any is seen again.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, temperature: float, seed: int, steps: int
    ) -> None:
        weights = np.asarray(sizes, np.float64) ** (1.0 / temperature)
        self.sizes = tuple(sizes)
        self.seed = seed
        self.steps = steps
        counts = _counts(weights / weights.sum(), batch_size, steps, seed)
        self._counts = counts
        self._starts = np.concatenate([np.zeros((1, len(sizes)), np.int64), counts.cumsum(axis=0)])
        # Two permutations per task are alive at a time: a batch can straddle two passes.
        self._order = lru_cache(maxsize=2 * len(sizes) + 2)(self._permutation)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Draw:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        indices = [self._take(t, int(self._starts[step, t]), int(self._counts[step, t]))
                   for t in range(len(self.sizes))]  # fmt: skip
        return Draw(step, tuple(indices))

    def _take(self, task: int, start: int, count: int) -> Int:
        size = self.sizes[task]
        positions = np.arange(start, start + count)
        taken = np.empty(count, np.int64)
        for turn in np.unique(positions // size):
            here = positions // size == turn
            taken[here] = self._order(task, int(turn))[positions[here] % size]
        return taken

    def _permutation(self, task: int, turn: int) -> Int:
        rng = np.random.default_rng((self.seed, 1, task, turn))
        return rng.permutation(self.sizes[task])


def _counts(share: F64, batch: int, steps: int, seed: int) -> Int:
    """Samples per step and task, `(steps, T)`: the share rounded at random, sum always `batch`.

    Systematic sampling: one uniform offset per step against the cumulated shares, so a task's
    count never differs from its expectation by one or more.
    """
    offset = np.random.default_rng((seed, 0)).random((steps, 1))
    edges = np.concatenate([np.zeros(1), share.cumsum() * batch])
    edges[-1] = batch
    whole = np.floor(edges + offset).astype(np.int64)
    return np.diff(whole, axis=1)
