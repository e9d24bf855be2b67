"""Image files in folders: `train/CLASS/*.png`, `val/CLASS/…`, `test/CLASS/…` (PNG and JPEG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lorkd_deploy.arrays import U8
from lorkd_deploy.data.source import SPLITS, DataSource, Split, TaskData, locate
from lorkd_deploy.errors import DataError
from lorkd_deploy.preprocess import read_image
from lorkd_deploy.storage import canonical_json, sha256_bytes

SUFFIXES = (".jpeg", ".jpg", ".png")


class ImageFiles(Sequence[U8]):
    """Files that are read each time they are asked for, in a fixed order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [read_image(path) for path in self.paths[index]]
        return read_image(self.paths[index])


class ImageFolderData(DataSource):
    """`train/val/test/CLASS/*.png|jpg` below one folder."""

    source: Literal["image-folder"]
    path: str

    def load(self, folders: Sequence[Path]) -> TaskData:
        """The classes are the folders below `train`, by name; `val` and `test` must have the same.

        Files are ordered by class, then by name. Raises `DataError` for a split or class that is
        missing, and later `ImageError` for a file that is no usable image.
        """
        root = locate(self.path, folders)
        classes = _folders(root / "train")
        splits: dict[str, Split] = {}
        listing: list[list[Any]] = []
        for name in SPLITS:
            found = _folders(root / name)
            _same_classes(classes, found, root / name)
            files = [_files(root / name / kind) for kind in classes]
            labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(f) for f in files])
            paths = [path for group in files for path in group]
            splits[name] = Split(ImageFiles(paths), labels)
            listing += [[p.relative_to(root).as_posix(), p.stat().st_size] for p in paths]
        provenance = {
            "source": self.source,
            "name": root.resolve().name,
            "listing_sha256": sha256_bytes(canonical_json(listing)),  # of names and sizes in bytes
        }
        return TaskData(tuple(classes), "multiclass", **splits, provenance=provenance)


def _folders(split: Path) -> list[str]:
    if not split.is_dir():
        raise DataError(
            f"the folder {split.name!r} is missing",
            where=split,
            fix="the layout is train/CLASS/*.png, val/CLASS/*.png, test/CLASS/*.png",
        )
    found = (p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found)


def _same_classes(classes: Sequence[str], found: Sequence[str], split: Path) -> None:
    missing = sorted(set(classes) - set(found))
    unknown = sorted(set(found) - set(classes))
    if not missing and not unknown:
        return
    parts = []
    if missing:
        parts.append("lacks " + ", ".join(missing))
    if unknown:
        parts.append("has " + ", ".join(unknown) + ", which train has not")
    raise DataError(
        f"the classes differ from those of train: {split.name} {' and '.join(parts)}",
        where=split,
        fix="each split has a folder for every class",
    )


def _files(folder: Path) -> list[Path]:
    # A name that starts with a dot is a file manager's (macOS writes `._image.png`).
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise DataError(
            f"the class {folder.name!r} has no image",
            where=folder,
            fix=f"put {', '.join(SUFFIXES)} files directly into it",
        )
    return sorted(found, key=lambda path: path.name)
