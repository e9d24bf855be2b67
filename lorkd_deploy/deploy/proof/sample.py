"""What an engine is asked and the trained model has answered: images, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from lorkd_deploy.arrays import F32, I64, U8, Batch
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.preprocess import Preprocess

BATCH = 32


class Sample(NamedTuple):
    """Images uint8 `(n, S, S, 3)` that every side gets, and the trained model's logits for them:
    float32 `(n, K)`, of all tasks, or of the one task whose test images they are."""

    on: Literal["inputs", "images"]
    images: U8
    expected: F32
    tasks: tuple[tuple[TaskEntry, slice], ...]
    labels: I64 | None = None
    guard: F32 | None = None  # the scores of a guard, (n,)
    maps: F32 | None = None  # of some of the images: `bundle.reference.mapped`

    @property
    def columns(self) -> slice:
        """Its tasks' own of the engine's classes."""
        return slice(self.tasks[0][1].start, self.tasks[-1][1].stop)

    def batches(self, preprocess: Preprocess, *, raw: bool = False) -> Iterator[Batch]:
        """What an engine takes of the images; the first one alone, as devices run it."""
        starts = [0, *range(1, len(self.images), BATCH)]
        for start, stop in zip(starts, [*starts[1:], len(self.images)], strict=True):
            yield preprocess.batch(self.images[start:stop], raw=raw)


def in_two_sizes(sample: Sample) -> Sample:
    """`sample` with enough images for batches of one and of more, so that an engine whose answer
    depends on the batch shows it: of two images or fewer all come again, among others.
    """
    images, labels = sample.images, sample.labels
    if not 0 < len(images) <= 2:
        return sample
    return sample._replace(
        images=np.concatenate([images, images, 255 - images[-1:]]),
        expected=np.concatenate([sample.expected, sample.expected]),
        labels=None if labels is None else np.concatenate([labels, labels]),
        guard=None if sample.guard is None else np.concatenate([sample.guard, sample.guard]),
        maps=None if sample.maps is None else np.concatenate([sample.maps, sample.maps]),
    )
