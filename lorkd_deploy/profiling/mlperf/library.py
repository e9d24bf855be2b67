"""LoadGen's query sample library: the test images of the tasks, prepared once, in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.scoring import inputs, open_task
from lorkd_deploy.profiling.setup import Setup

GENERATED = 64  # images, for an engine whose test images are not here


@dataclass(frozen=True)
class Place:
    """A task's images are rows `start` up to `stop` of the file; `labels` are theirs."""

    start: int
    stop: int
    labels: I64


@dataclass(frozen=True)
class Library:
    """`file` holds float32 `(rows, 3, H, W)`, so that a process maps only what it reads.

    The tasks' images stand one task after the other, then the generated ones.
    """

    file: Path
    tasks: Mapping[str, Place]

    def of(self, engine: Artifact) -> tuple[int, int, dict[str, Place]]:
        """First row and end of what `engine` is asked, and where its tasks' images are in that;
        no task where none of its images are here: what it is asked is generated then."""
        own = {t.name: self.tasks[t.name] for t in engine.tasks if t.name in self.tasks}
        first = min((place.start for place in own.values()), default=None)
        if first is None:
            end = max((place.stop for place in self.tasks.values()), default=0)
            return end, end + GENERATED, {}
        moved = {
            name: Place(place.start - first, place.stop - first, place.labels)
            for name, place in own.items()
        }
        return first, max(place.stop for place in own.values()), moved


def write_library(file: Path, setup: Setup) -> Library:
    """Prepare every test image of the tasks, in the recipe's order, and write them to `file`."""
    protocol = setup.protocol
    found = [(task, data) for task in setup.tasks if (data := open_task(setup.bundle, task))]
    total = sum(len(data.test) for _, data in found)
    shape = (total + GENERATED, *protocol.input_shape)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    generator = np.random.default_rng(protocol.seed)
    rows[total:] = generator.standard_normal((GENERATED, *protocol.input_shape), np.float32)
    places, start = {}, 0
    for task, data in found:
        begin = start
        for batch in inputs(data.test, setup.bundle.manifest.preprocess):
            rows[start : start + len(batch)] = batch
            start += len(batch)
        places[task.name] = Place(begin, start, data.test.labels)
    rows.flush()
    return Library(file, places)
