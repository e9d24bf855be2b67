"""Image files in folders: `train/CLASS/*.png`, `val/CLASS/…`, `test/CLASS/…`, or below patients'
folders in these: `train/CLASS/PATIENT/*.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.data.files import ImageFiles, Paths, folder_provenance
from lorkd_deploy.data.source import SPLITS, DataSource, Split, TaskData, locate
from lorkd_deploy.errors import DataError
from lorkd_deploy.image_files import SUFFIXES, Found, image_files, require_utf8


class ImageFolderData(DataSource):
    """`train/val/test/CLASS/*.png`, or `…/CLASS/PATIENT/*.png`, below one folder."""

    source: Literal["image-folder"]
    path: str

    def load(self, folders: Sequence[Path]) -> TaskData:
        """The classes are the folders below `train`, by name; `val` and `test` must have the same.

        Files are ordered by class, then by path; the first folder below a class is the patient's
        (or the case's), and numbered as a group. What is no image, or a link to nothing, is left
        out and counted. Raises `DataError` for a split or class that is missing and for a name
        that isn't UTF-8, and later `ImageError` for a file that is no usable image.
        """
        root = locate(self.path, folders)
        require_utf8(root.resolve())
        classes = _folders(root / "train")
        found_in: dict[str, tuple[list[Path], I64]] = {}
        left_out = Found()
        for name in SPLITS:
            found = _folders(root / name)
            _same_classes(classes, found, root / name)
            files = [_files(root / name / kind, left_out) for kind in classes]
            labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(f) for f in files])
            paths = [path for group in files for path in group]
            found_in[name] = (paths, labels)
            loose = [path for path in sorted((root / name).iterdir()) if _loose(path)]
            if loose:
                left_out.leave_out("beside the folders of the classes", *loose)
        groups = _groups({root / name: paths for name, (paths, _) in found_in.items()})
        splits = {
            name: Split(ImageFiles(_compact(root, paths)), labels, groups.get(root / name))
            for name, (paths, labels) in found_in.items()
        }
        every = [path for paths, _ in found_in.values() for path in paths]
        provenance = folder_provenance(self.source, root, every, left_out)
        return TaskData(tuple(classes), "multiclass", **splits, provenance=provenance)


def _loose(path: Path) -> bool:
    return not path.is_dir() and not path.name.startswith(".")


def _folders(split: Path) -> list[str]:
    if not split.is_dir():
        raise DataError(
            f"the folder {split.name!r} is missing",
            where=split,
            fix="the layout is train/CLASS/*.png, val/CLASS/*.png, test/CLASS/*.png",
        )
    found = sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    for path in found:
        require_utf8(path)
    return [path.name for path in found]


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


def _files(folder: Path, left_out: Found) -> list[Path]:
    found = image_files(folder)
    if not found.files:
        others = f"; {found.in_words}" if found.left_out else ""
        raise DataError(
            f"the class {folder.name!r} has no image{others}",
            where=folder,
            fix=f"put {', '.join(SUFFIXES)} files into it",
        )
    left_out.leave_out_too(found)
    return found.files


def _compact(root: Path, paths: Sequence[Path]) -> Paths:
    return Paths.of(root, (path.relative_to(root).as_posix() for path in paths))


def _groups(files: Mapping[Path, Sequence[Path]]) -> dict[Path, I64]:
    """Split's folder → the patient's number of each image `(N,)`; nothing where no class has
    folders of patients.

    A folder of the same name below another class or split is the same patient's. An image without
    one is a group of its own.
    """
    parts = {
        split: [path.relative_to(split).parts for path in paths] for split, paths in files.items()
    }
    if all(len(part) == 2 for own in parts.values() for part in own):
        return {}
    names = {
        split: [part[1:2] if len(part) > 2 else (split.name, *part) for part in own]
        for split, own in parts.items()
    }
    every = dict.fromkeys(name for own in names.values() for name in own)
    number = {name: index for index, name in enumerate(every)}
    return {split: np.array([number[n] for n in own], np.int64) for split, own in names.items()}
