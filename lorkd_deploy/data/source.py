"""What every source of images gives: the section of a recipe that names it, and a task's data."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lorkd_deploy.arrays import I32, I64, U8
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.errors import DataError
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.schema import Part

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Attribute:
    """What is known of each image beside its label: a sex, a site, a camera, an age in bands.

    `codes` int32 `(N,)` are places in `values`, -1 where nothing is known.
    """

    values: tuple[str, ...]
    codes: I32

    def part(self, indices: I64) -> Attribute:
        """It, of the images at `indices`."""
        return Attribute(self.values, self.codes[indices])


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, by index, and their labels.

    `images` may be one array or a sequence that reads on request. `labels` is int64: class
    numbers `(N,)`, or 0 and 1 `(N, L)` for multi-label tasks. `groups` `(N,)` are the numbers of
    patients or cases, where the source has any: images of one group are alike, and one number is
    the same patient in every split. `attributes` are by the name of their column.
    """

    images: Sequence[U8]
    labels: I64
    groups: I64 | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: I64) -> Split:
        """The images at `indices`, in that order."""
        groups = None if self.groups is None else self.groups[indices]
        attributes = {name: one.part(indices) for name, one in self.attributes.items()}
        return Split(_Chosen(self.images, indices), self.labels[indices], groups, attributes)


class _Chosen(Sequence[U8]):
    """Some of the images of a split, still unread."""

    def __init__(self, images: Sequence[U8], indices: I64) -> None:
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def paths(self) -> Sequence[Path]:
        """Those of the images; an `AttributeError` where they are no files."""
        chosen: Sequence[Path] = self._images.paths.part(self._indices)  # type: ignore[attr-defined]
        return chosen

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._images[int(one)] for one in self._indices[index]]
        return self._images[int(self._indices[index])]


@dataclass(frozen=True, eq=False)
class TaskData:
    """One label set with its three splits, which never share an entry.

    `provenance` says where the images come from, as JSON values and without a machine's paths:
    `source` and `name` always, hash, licence and the like where there are any.
    """

    classes: tuple[str, ...]
    kind: Kind
    train: Split
    val: Split
    test: Split
    provenance: dict[str, Any]


class OnRequest(Sequence[U8]):
    """`count` images that `make` gives as one array, when the first of them is asked for.

    So a device that checks an engine on test images never holds the training images.
    """

    def __init__(self, count: int, make: Callable[[], U8]) -> None:
        self._count = count
        self._make = make
        self._array: U8 | None = None
        self._lock = threading.Lock()  # loader threads may ask at once

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            if self._array is None:
                self._array = self._make()
        return self._array[index]


class DataSource(Part):
    """Base of a task's `data:` section; a source is one module of this room with one of these.

    Its `source` is a `Literal` with the source's name, its other fields are the section's keys.
    """

    source: str
    dicom: DicomRules | None = Field(
        default=None,
        description="how DICOM files become pixels like these images, for this task",
    )

    def load(self, folders: Sequence[Path]) -> TaskData:
        """The task's data; files are looked for in `folders`, and nothing is downloaded."""
        raise NotImplementedError

    def fetch(self, folders: Sequence[Path]) -> None:
        """Download what `load` needs and none of `folders` has, where the source can."""


def data_folders(given: str | Path | None = None) -> list[Path]:
    """Where data is looked for: the given folder, `$LORKD_DATA`, `~/.medmnist`, in this order.

    `LORKD_DATA` may name several folders, separated as those of PATH are.

    One that starts with `~` is left out where no home folder is known: a container's user often
    has neither `HOME` nor an entry in passwd.
    """
    named = (given, *os.environ.get("LORKD_DATA", "").split(os.pathsep), "~/.medmnist")
    # `Path.expanduser` raises where there is no home.
    places = (os.path.expanduser(os.fspath(place)) for place in named if place)  # noqa: PTH111
    return list(dict.fromkeys(Path(place) for place in places if not place.startswith("~")))


def locate(path: str, folders: Sequence[Path], what: str = "data") -> Path:
    """The file or folder of `what` that `path` names; in `folders`, then the working directory.

    Raises `DataError` where it is in none of them.
    """
    wanted = Path(os.path.expanduser(path))  # noqa: PTH111
    places = [wanted] if wanted.is_absolute() else [f / wanted for f in (*folders, Path())]
    for place in places:
        if place.exists():
            return place
    raise DataError(
        f"there is no {what} at {path!r}",
        where="looked at " + ", ".join(str(place) for place in places),
        fix="put it there, or name its folder by data_folder in the recipe or by LORKD_DATA",
    )


def image_sha256(image: U8) -> bytes:
    """SHA-256 (32 bytes) of one raw image: its shape, its type and its values in C order."""
    head = f"{image.dtype.str} {image.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).digest()
