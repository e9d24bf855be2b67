"""NumPy archives with the keys of MedMNIST: `train_images`, `train_labels`, `val_…`, `test_…`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.source import SPLITS, DataSource, OnRequest, Split, TaskData, locate
from lorkd_deploy.errors import DataError
from lorkd_deploy.image_files import NUMPY_DAMAGE
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.preprocess import SMALLEST_SIDE
from lorkd_deploy.storage import sha256_file

_KEYS = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
_GROUPS = {f"{split}_groups" for split in SPLITS}
_DAMAGE = (*NUMPY_DAMAGE, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class NpzData(DataSource):
    """A NumPy archive with the keys of MedMNIST (`train_images`, `train_labels`, …)."""

    source: Literal["npz"]
    path: str = Field(description="a file; a relative path is looked for in the data folders")
    classes: tuple[str, ...] | None = Field(default=None, description="names, in label order")

    def load(self, folders: Sequence[Path]) -> TaskData:
        """A file of the user's own.

        Images are uint8 `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`. Labels are whole numbers:
        classes `(N,)` or `(N, 1)`, or findings `(N, L)` of 0 and 1, which make a multi-label task.
        `train_groups`, `val_groups`, `test_groups` may number the patients or cases of the images.
        Classes without a name in the recipe are called class-0, class-1, …
        """
        path = locate(self.path, folders)
        splits, kind = read_archive(path)
        classes = self.classes or _numbered(splits["train"].labels, kind)
        provenance = {"source": self.source, "name": path.name, "sha256": sha256_file(path)}
        return TaskData(classes, kind, **splits, provenance=provenance)


def _numbered(labels: I64, kind: Kind) -> tuple[str, ...]:
    # The training labels alone say how many classes there are: one that only the test split has
    # is a fault, not a class.
    count = labels.shape[1] if kind == "multilabel" else max(int(labels.max(initial=0)), 0) + 1
    return tuple(f"class-{number}" for number in range(count))


def read_archive(path: Path) -> tuple[dict[str, Split], Kind]:
    """The three splits, images unread but their shapes checked, and the kind of the labels.

    Raises `DataError` for a file that is missing, damaged or holds something else.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        present = {name.removesuffix(".npy") for name in archive.namelist()}
        missing = [key for key in _KEYS if key not in present]
        if missing:
            raise DataError(
                f"the archive lacks {', '.join(missing)}; it has "
                + (", ".join(sorted(present)) or "nothing"),
                where=path,
                fix=f"save it by numpy.savez_compressed with the keys {', '.join(_KEYS)}",
            )
        headers = {key: _header(archive, key) for key in _KEYS}
    labels = {split: _labels(path, f"{split}_labels") for split in SPLITS}
    if len({values.shape[1:] for values in labels.values()}) > 1:
        shapes = ", ".join(f"{split} {values.shape}" for split, values in labels.items())
        raise DataError(
            f"the splits' labels differ in shape: {shapes}", where=path, fix="give all one shape"
        )
    kind: Kind = "multilabel" if labels["train"].ndim == 2 else "multiclass"
    if kind == "multilabel":
        _refuse_one_hot(path, labels)
    splits = {
        split: Split(
            _images(path, f"{split}_images", *headers[f"{split}_images"]),
            labels[split],
            _groups(path, f"{split}_groups", len(labels[split])) if present >= _GROUPS else None,
        )
        for split in SPLITS
    }
    return splits, kind


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError("the file does not exist", where=path) from None
    except _DAMAGE as exc:
        raise DataError(
            f"the file is no readable NumPy archive: {exc}",
            where=path,
            fix="it may be truncated or damaged: get a fresh copy; arrays of objects are refused",
        ) from exc


def _header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array without unpacking it; `ValueError` where bytes are missing."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{key} has the unknown format version {version}")
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"{key} is an array of objects")
        if info.file_size - stream.tell() != prod(shape) * dtype.itemsize:
            raise ValueError(f"{key} has fewer or more bytes than its shape {shape} needs")
    return shape, dtype


def _array(path: Path, key: str) -> npt.NDArray[Any]:
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[key])


def _images(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OnRequest:
    where = f"{path}, {key}"
    if dtype != np.uint8:
        raise DataError(
            f"the images hold {dtype} values, 8-bit (uint8) is needed",
            where=where,
            fix="map them to 0 … 255 and save them as uint8",
        )
    if len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
        raise DataError(
            f"the images have shape {shape}; (N, H, W), (N, H, W, 1) or (N, H, W, 3) is needed",
            where=where,
            fix=_fix_of_shape(shape),
        )
    if min(shape[1:3]) < SMALLEST_SIDE:
        raise DataError(
            f"the images are {shape[2]} × {shape[1]} px, "
            f"at least {SMALLEST_SIDE} × {SMALLEST_SIDE} are needed",
            where=where,
            fix="save the whole images",
        )

    def make() -> U8:
        images = _array(path, key)
        if images.shape != shape or images.dtype != np.uint8:
            raise DataError("the file was changed while it was in use", where=where)
        return images

    return OnRequest(shape[0], make)


def _fix_of_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[3] == 4:
        return "leave the alpha channel out: images[..., :3]"
    if len(shape) == 4 and shape[1] in (1, 3):
        return "put the channels last: images.transpose(0, 2, 3, 1)"
    return "images have two dimensions: of volumes save single slices, (N, H, W)"


def _labels(path: Path, key: str) -> I64:
    labels = _array(path, key)
    if labels.dtype.kind not in "iub":
        raise DataError(
            f"the labels hold {labels.dtype} values, whole numbers are needed",
            where=f"{path}, {key}",
            fix="save the class numbers as integers: labels.astype('int64')",
        )
    if labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
        raise DataError(
            f"the labels have shape {labels.shape}; (N,), (N, 1) or (N, findings) is needed",
            where=f"{path}, {key}",
            fix="save one class number per image",
        )
    labels = labels.astype(np.int64)
    return labels[:, 0] if labels.shape[1:] == (1,) else labels


def _refuse_one_hot(path: Path, labels: dict[str, I64]) -> None:
    every = np.concatenate(list(labels.values()))
    if len(every) and ((every == 1).sum(axis=1) == 1).all() and (every.sum(axis=1) == 1).all():
        raise DataError(
            f"every image has exactly one of {every.shape[1]} labels: "
            "these are classes in one-hot form, not several findings",
            where=f"{path}, labels",
            fix="save class numbers instead: labels.argmax(axis=1)",
        )


def _groups(path: Path, key: str, images: int) -> I64:
    groups = _array(path, key)
    if groups.dtype.kind not in "iu" or groups.shape not in ((images,), (images, 1)):
        raise DataError(
            f"the groups are {groups.dtype} values of shape {groups.shape}; one whole number for "
            f"each of the {images} images is needed",
            where=f"{path}, {key}",
            fix="number the patients or cases, or leave the groups of all splits out",
        )
    return groups.reshape(-1).astype(np.int64)
