"""What lies at a path, as a recipe's `data:` section, divided into splits where it isn't yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lorkd_deploy.data import TaskData
from lorkd_deploy.data.table import Table, open_table
from lorkd_deploy.datacheck.division import split_data
from lorkd_deploy.dicom import is_dicom
from lorkd_deploy.errors import DataError, UsageError
from lorkd_deploy.image_files import image_files
from lorkd_deploy.progress import Progress

# What columns are called, the likeliest first.
PATHS = ("path", "image", "file", "filename", "image_path", "filepath", "image_id")
LABELS = ("label", "class", "diagnosis", "dx", "category", "finding", "target")
GROUPS = ("patient", "patient_id", "patientid", "group", "case", "case_id", "study", "lesion_id")
SPLIT_NAMES = ("split", "fold", "set")
LOOKED_AT = 50  # images whose sides are read


def data_section(
    images: Path, lists: Path, *, group: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """The section of images in folders, of a CSV file that lists them or of an archive.

    Images without splits are divided (`split_data`), and `lists` is written. `group` names the
    CSV's column of patients. Raises `DataError` for anything else, and for files that are missing,
    `UsageError` where `lists` would replace a file.
    """
    images = images.resolve()
    if images.is_dir():
        return _of_folder(images, lists, progress)
    if images.suffix == ".npz" and images.is_file():
        return {"source": "npz", "path": str(images)}
    if images.is_file():
        return _of_csv(images, lists, group, progress)
    raise DataError(
        "there are no images",
        where=images,
        fix="name a folder of images, a CSV file that lists them, or a NumPy archive",
    )


def _of_folder(folder: Path, lists: Path, progress: Progress | None) -> dict[str, Any]:
    files = image_files(folder, dicom=True).files
    dicom = bool(files) and all(map(is_dicom, files))
    if (folder / "train").is_dir():
        return {"source": "dicom" if dicom else "image-folder", "path": str(folder)}
    _divided(folder, lists, progress=progress)
    section = {"path": str(lists.resolve()), "root": str(folder)}
    if dicom:  # whose they are their headers say
        return {"source": "dicom"} | section
    return {"source": "csv"} | section | {"group": "group"}


def _of_csv(
    path: Path, lists: Path, group: str | None, progress: Progress | None
) -> dict[str, Any]:
    table = open_table(path)
    image, label = (
        _named(table, known, what) for known, what in ((PATHS, "paths"), (LABELS, "labels"))
    )
    group = group or _found(table, GROUPS)
    section = {"source": "csv", "path": str(path), "root": str(path.parent)}
    section |= {"image": image, "label": label} | ({"group": group} if group else {})
    split = _found(table, SPLIT_NAMES)
    if split is not None:
        return section | {"split": split}
    _divided(path, lists, group=group, image=image, label=label, progress=progress)
    return section | {"path": str(lists.resolve())}


def _divided(images: Path, lists: Path, **how: Any) -> None:
    """Write `lists`, unless a file is there, whoever's it is."""
    if lists.exists():
        raise UsageError(
            f"{lists} exists already, where the list of images and their splits belongs",
            fix="move that file away, or give the recipe or the task another name",
        )
    split_data(images, lists, **how)


def _named(table: Table, known: Sequence[str], what: str) -> str:
    found = _found(table, known)
    if found is None:
        raise DataError(
            f"no column seems to hold the {what}: there are {', '.join(table.columns)}",
            where=table.path,
            fix=f"call it {known[0]!r}; or write the recipe by hand, where each column is named",
        )
    return found


def _found(table: Table, known: Sequence[str]) -> str | None:
    by_name = {column.lower(): column for column in table.columns}
    return next((by_name[name] for name in known if name in by_name), None)


def shorter_side(data: TaskData) -> int:
    """The median of some training images' shorter sides, px."""
    step = max(1, len(data.train) // LOOKED_AT)
    places = range(0, len(data.train), step)
    sides = [min(data.train.images[place].shape[:2]) for place in places]
    return int(median(sides))


def as_name(text: str) -> str:
    """`text` as a department or task may be called; raises `UsageError` where nothing is left."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63]
    if not name:
        raise UsageError(f"{text!r} can't be a name", fix="use letters and digits")
    return name
