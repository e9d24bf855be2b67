"""LoadGen's query sample library: the test images of the tasks, prepared once, in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.data import Split
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.planning.setup import Setup
from lorkd_deploy.profiling.scoring import open_task, pictures

GENERATED = 64  # images, for an engine whose test images are not here


@dataclass(frozen=True)
class Place:
    """A task's images are rows `start` up to `stop` of the file; `labels` are theirs."""

    start: int
    stop: int
    labels: I64


@dataclass(frozen=True)
class Library:
    """`files` hold float32 `(rows, 3, H, W)`, so that a process maps only what it reads; one per
    preprocessing of the engines, by its hash.

    The tasks' images stand one task after the other, then the generated ones.
    """

    files: Mapping[str, Path]
    tasks: Mapping[str, Place]

    def file(self, engine: Artifact) -> Path:
        """The one with the input of `engine`."""
        return self.files[engine.preprocess_sha256]

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


def write_library(folder: Path, setup: Setup) -> Library:
    """Prepare every test image of the tasks, in the recipe's order, and write them to `folder`."""
    found = {task.name: data for task in setup.tasks if (data := open_task(setup.bundle, task))}
    places, start = {}, 0
    for name, data in found.items():
        places[name] = Place(start, start + len(data.test), data.test.labels)
        start += len(data.test)
    files: dict[str, Path] = {}
    for engine in setup.engines:
        if engine.preprocess_sha256 not in files:
            file = folder / f"{len(files)}.npy"
            _write(file, [data.test for data in found.values()], engine, setup.protocol.seed)
            files[engine.preprocess_sha256] = file
    return Library(files, places)


def _write(file: Path, splits: Sequence[Split], engine: Artifact, seed: int) -> None:
    shape = (sum(map(len, splits)) + GENERATED, *engine.input_shape)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    start = 0
    for split in splits:
        for images in pictures(split, engine.preprocess):
            rows[start : start + len(images)] = engine.preprocess.normalise(images)
            start += len(images)
    rows[start:] = np.random.default_rng(seed).standard_normal(rows[start:].shape, np.float32)
    rows.flush()
