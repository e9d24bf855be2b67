"""Images and labels of one task, whatever they come from; one module a source.

A source is a module here, named as in the recipe (`image-folder` → `image_folder.py`), with
`load(spec, folders) -> TaskData`, and `fetch(spec, folders)` if it can get its files from a
network. What every source has to keep is checked once, in `open_data`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from lorkd_deploy.errors import DataError

if TYPE_CHECKING:
    from lorkd_deploy.recipe import DataSpec

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, by index, and their labels.

    `images` may be one array or a sequence that reads on request. `labels` is int64: class
    numbers `(N,)`, or 0 and 1 `(N, L)` for multi-label tasks.
    """

    images: Sequence[U8]
    labels: I64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TaskData:
    """One label set with its three splits, which never share an entry.

    `provenance` says where the images come from, as JSON values and without a machine's paths:
    `source` and `name` always, hash, licence and the like where there are any.
    """

    classes: tuple[str, ...]
    kind: Literal["multiclass", "multilabel"]
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


class _Source(Protocol):
    def load(self, spec: Any, folders: Sequence[Path]) -> TaskData: ...


def open_data(
    spec: DataSpec, folder: str | Path | None = None, *, download: bool = False
) -> TaskData:
    """Open what a recipe's `data:` names; files are looked for in `data_folders(folder)`.

    Labels are read and checked, images are read when they are asked for. `download` lets a source
    that can fetch its files do so; without it nothing leaves this machine. Raises `DataError` for
    data that is missing, damaged or contradicts itself, `UsageError` for an unknown set.
    """
    source = import_module(f"{__name__}.{spec.source.replace('-', '_')}")
    folders = data_folders(folder)
    if download and hasattr(source, "fetch"):
        source.fetch(spec, folders)
    return _checked(cast(_Source, source).load(spec, folders))


def data_folders(given: str | Path | None = None) -> list[Path]:
    """Where data is looked for: the given folder, `$LORKD_DATA`, `~/.medmnist`, in this order."""
    named = (given, os.environ.get("LORKD_DATA"), Path("~/.medmnist"))
    return list(dict.fromkeys(Path(place).expanduser() for place in named if place))


def locate(path: str, folders: Sequence[Path]) -> Path:
    """The file or folder that `path` names; a relative one in `folders`, then where we are."""
    wanted = Path(path).expanduser()
    places = [wanted] if wanted.is_absolute() else [f / wanted for f in (*folders, Path())]
    for place in places:
        if place.exists():
            return place
    raise DataError(
        f"there is no data at {path!r}",
        where="looked at " + ", ".join(str(place) for place in places),
        fix="put it there, or name its folder by data_folder in the recipe or by LORKD_DATA",
    )


def image_sha256(image: U8) -> bytes:
    """SHA-256 (32 bytes) of one raw image: its shape, its type and its values in C order."""
    head = f"{image.dtype.str} {image.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).digest()


def _checked(data: TaskData) -> TaskData:
    where = f"{data.provenance['source']} {data.provenance['name']}"
    if len(data.classes) < 2 or len(set(data.classes)) < len(data.classes):
        raise DataError(
            f"a task needs two or more different classes, here: {', '.join(data.classes)}",
            where=where,
            fix="check the labels, and the recipe's class names",
        )
    for name in SPLITS:
        split: Split = getattr(data, name)
        if not len(split):
            raise DataError(
                f"the {name} split is empty",
                where=where,
                fix="training, validation and test images are all needed",
            )
        if len(split.images) != len(split.labels):
            raise DataError(
                f"the {name} split has {len(split.images)} images and {len(split.labels)} labels",
                where=where,
                fix="give each image one label",
            )
        _check_labels(split.labels, data, f"{where}, {name} labels")
    return data


def _check_labels(labels: I64, data: TaskData, where: str) -> None:
    count = len(data.classes)
    multilabel = data.kind == "multilabel"
    shape = (len(labels), count) if multilabel else (len(labels),)
    if labels.shape != shape:
        raise DataError(
            f"labels of a {data.kind} task with {count} classes have shape {shape}, "
            f"here: {labels.shape}",
            where=where,
            fix="check the labels, and the recipe's class names",
        )
    highest = 1 if multilabel else count - 1
    wrong = np.flatnonzero(((labels < 0) | (labels > highest)).reshape(len(labels), -1).any(axis=1))
    if len(wrong):
        raise DataError(
            f"labels run from 0 to {highest}, image {wrong[0]} has {labels[wrong[0]].tolist()} "
            f"({len(wrong)} wrong in all)",
            where=where,
            fix="number the classes from 0; list every class in the recipe"
            if not multilabel
            else "mark a finding by 1 and its absence by 0",
        )
    if (labels == labels[0]).all():
        raise DataError(
            "all images have the same label: nothing can be learnt or measured",
            where=where,
            fix="split the images so that every split has several classes",
        )
