"""DICOM files: in folders of classes, or named by a CSV; their pixels by the task's rules."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.columns import Meaning
from lorkd_deploy.data.csv import Columns
from lorkd_deploy.data.files import Paths, folder_provenance
from lorkd_deploy.data.index import SPELLINGS, Index, Row, index_rows
from lorkd_deploy.data.listed import READERS, open_listed
from lorkd_deploy.data.source import DataSource, TaskData
from lorkd_deploy.data.table import Table
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.dicom.header import patient_of
from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.errors import DataError, ImageError
from lorkd_deploy.image_files import Found, image_files, require_utf8

COLUMNS = ("root", "image", "label", "label_range", "findings", "split", "group", "attributes")
log = logging.getLogger(__name__)


class DicomData(Columns, DataSource):
    """A folder `CLASS/…` or `train/CLASS/…` of DICOM files, or a CSV that names them.

    The keys of `csv` are here too; those of columns are for a CSV alone.
    """

    source: Literal["dicom"]
    path: str | dict[Literal["train", "val", "test"], str] = Field(
        description="a folder CLASS/… or train/CLASS/…, or a CSV file, or one for each split"
    )
    split: str = Field(
        default="split", description="column that says train, val or test; there may be none"
    )
    group: str | None = Field(
        default=None,
        description="column of patients; unset: `group`, or else the Patient ID of each header",
    )
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of the groups that test, where no split says so"
    )

    def load(self, folders: Sequence[Path]) -> TaskData:
        """Images are read when they are asked for, by the section's `dicom` rules.

        Whose an image is, the header's Patient ID says where no column does: nothing of it is
        kept but which images are one patient's. Without splits they are drawn here, patients
        whole. Raises `DataError` as `csv` does, `ImageError` for a file whose header can't be read.
        """
        lists, rules = self.lists(folders), self.dicom or DicomRules()
        read = partial(pixels, rules=rules)
        if len(lists) == 1 and (folder := next(iter(lists.values()))).is_dir():
            data = self._of_folder(folder, read)
        else:
            root = self.folder(list(lists.values()), folders)
            data = open_listed(self, lists, root, lambda: self._index(lists, root), read)
        return replace(data, provenance=data.provenance | {"rules_sha256": rules.sha256})

    def _index(self, lists: Mapping[str, Path], root: Path) -> Index:
        return _divided(self.index(lists, root), self.test_share)

    def _of_folder(self, root: Path, read: partial[U8]) -> TaskData:
        if columns := [name for name in COLUMNS if self._names(name)]:
            raise DataError(
                f"a folder has no columns, and the recipe names {', '.join(columns)}",
                where=root,
                fix="leave them out, or give a CSV file as `path`",
            )
        require_utf8(root.resolve())
        found = image_files(root, (), dicom=True)
        rows = list(_rows(root, found))
        if not rows:
            others = f"; {found.in_words}" if found.left_out else ""
            raise DataError(
                f"no DICOM file lies in a folder of its class{others}",
                where=root,
                fix="the layout is CLASS/FILE or train/CLASS/FILE; folders may lie between",
            )
        index = index_rows(rows, root, Meaning(classes=self.classes), root)
        index = _divided(index, self.test_share).with_drawn("val", self.val_share)
        files = (root / row.path for row in rows)
        provenance = folder_provenance(self.source, root, files, found)
        return TaskData(index.classes, index.kind, **index.splits(read), provenance=provenance)

    def lists(self, folders: Sequence[Path]) -> dict[str, Path]:
        """The files by split, or one file or folder as `all`."""
        found = super().lists(folders)
        for path in found.values():
            if len(found) > 1 and path.is_dir():
                raise DataError(
                    "a folder has all splits below it: train/CLASS/…, val/CLASS/…, test/CLASS/…",
                    where=path,
                    fix="give the folder above as `path`, or a CSV file for each split",
                )
        return found

    def _names(self, key: str) -> bool:
        """Whether the recipe says more than the default; a run's own recipe has every key."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def _split_column(self, table: Table) -> int | None:
        if self._names("split") or _has(table, "split"):
            return super()._split_column(table)
        return None

    def _group_column(self, table: Table) -> int | None:
        if self.group is None and _has(table, "group"):
            return table.column("group", "the groups")
        return super()._group_column(table)


def _has(table: Table, name: str) -> bool:
    return name in (column.lower() for column in table.columns)


def _rows(root: Path, found: Found) -> Iterator[Row]:
    """Class and split of each file, by its folders; others are added to what was left out."""
    divided = (root / "train").is_dir()
    for number, path in enumerate(found.files, 1):
        name = path.relative_to(root).as_posix()
        parts = name.split("/")
        if len(parts) < (3 if divided else 2):
            found.leave_out("beside the folders of the classes", path)
        elif not divided:
            yield Row(number, name, "train", parts[:1])
        elif parts[0].lower() not in SPELLINGS:
            found.leave_out("beside the folders of the splits", path)
        else:
            yield Row(number, name, parts[0], parts[1:2])


def _divided(index: Index, test_share: float) -> Index:
    """`index` with its patients, and with images that test."""
    if index.groups is None:
        index = replace(index, groups=patients(index.paths))
    return index.with_drawn("test", test_share)


def patients(paths: Paths) -> I64 | None:
    """Numbers of DICOM files' patients `(N,)`, by the headers; an image of nobody is a group of
    its own. None, with a warning, where all are of the same one.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(_patient, paths))
    if len(set(found)) == 1 and len(found) > 1:
        log.warning(
            "%s: all %d files name the same patient or none, as anonymised ones do: which are one "
            "patient's isn't known; name a column by `group`",
            paths.root,
            len(found),
        )
        return None
    numbers: dict[str, int] = {}
    names = (name or f"\0{place}" for place, name in enumerate(found))
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _patient(path: Path) -> str:
    return patient_of(path) if path.is_file() else ""  # those that are missing are named later


def pixels(path: Path, rules: DicomRules) -> U8:
    """A file's pixels; a disk or network that fails is an `ImageError` too."""
    try:
        return read_dicom(path, rules).pixels
    except OSError as exc:
        raise ImageError(f"the file can't be read: {exc.strerror}", where=path) from exc
