"""What a list of images says, row by row, kept as arrays: a million images in a hundred megabytes.

`csv`, `list` and `dicom` read their files into `Row`s; `columns.py` says what their texts mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.columns import (
    SHOWN,
    Coded,
    Meaning,
    attribute_of,
    groups_of,
    labels_of,
    whole,
)
from lorkd_deploy.data.dividing import divide
from lorkd_deploy.data.files import ImageFiles, Paths
from lorkd_deploy.data.source import SPLITS, Attribute, Split
from lorkd_deploy.errors import DataError
from lorkd_deploy.image_files import read_image
from lorkd_deploy.metrics.score import Kind

SPELLINGS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}


class Row(NamedTuple):
    """One image as a list has it: its path, and text. `labels` has several for findings."""

    line: int
    path: str
    split: str
    labels: Sequence[str]
    group: str | None = None
    attributes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Index:
    """The images of a task: their paths, `(N,)` splits (places in `SPLITS`), labels and the rest.

    `labels` are int64 `(N,)` places in `classes`, or 0 and 1 `(N, L)` for findings.
    """

    paths: Paths
    split: U8
    labels: I64
    groups: I64 | None
    attributes: dict[str, Attribute]
    classes: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return "multilabel" if self.labels.ndim == 2 else "multiclass"

    def part(self, indices: I64) -> Index:
        """The images at `indices`, in that order."""
        return replace(
            self,
            paths=self.paths.part(indices),
            split=self.split[indices],
            labels=self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
            attributes={name: one.part(indices) for name, one in self.attributes.items()},
        )

    def splits(self, read: Callable[[Path], U8] = read_image) -> dict[str, Split]:
        """`train`, `val` and `test`, whose images `read` reads when they are asked for."""
        found = {}
        for number, name in enumerate(SPLITS):
            own = self.part(np.flatnonzero(self.split == number))
            images = ImageFiles(own.paths, read)
            found[name] = Split(images, own.labels, own.groups, own.attributes)
        return found

    def with_drawn(self, name: str, share: float, seed: int = 0) -> Index:
        """It, with `share` of the training groups as the split `name` where it has none."""
        number = SPLITS.index(name)
        if (self.split == number).any() or not (self.split == 0).any():
            return self
        train = np.flatnonzero(self.split == 0)
        groups = None if self.groups is None else self.groups[train]
        split = self.split.copy()
        split[train] = number * divide(self.labels[train], groups, (1 - share, share), seed)
        return replace(self, split=split)


def index_rows(rows: Iterable[Row], root: Path, meaning: Meaning, where: object) -> Index:
    """The index of a list's rows; raises `DataError` for what can't be right, with its lines."""
    labels = [Coded() for _ in meaning.findings or ("label",)]
    columns = [Coded() for _ in meaning.attributes]
    groups, split, faults = Coded(), bytearray(), _Faults(where)

    def names() -> Iterable[str]:
        for row in rows if meaning.own is None else _own(rows, meaning.own, faults):
            number = SPELLINGS.get(row.split.strip().lower())
            if number is None:
                faults.add(row.line, f"{row.split!r} is no split: train, val or test")
            split.append(number or 0)
            for column, text in zip(labels, row.labels, strict=True):
                column.add(text)
            for column, text in zip(columns, row.attributes, strict=True):
                column.add(text)
            if row.group is not None:
                groups.add(row.group)
            yield _relative(row, root, faults)

    paths = Paths.of(root, names())
    faults.raise_any()
    if not len(paths):
        what = "the list names no image"
        if meaning.own is not None:
            what += " whose label is a number from {} to {}".format(*meaning.own)
        raise DataError(what, where=where, fix="give one image a row")
    splits = np.frombuffer(split, np.uint8)
    classes, numbers = labels_of(labels, splits, meaning, where)
    attributes = {
        name: attribute_of(column, edges, splits)
        for column, (name, edges) in zip(columns, meaning.attributes.items(), strict=True)
    }
    numbered = groups_of(groups) if len(groups.numbers) else None
    return Index(paths, splits, numbers, numbered, attributes, classes)


def _own(rows: Iterable[Row], own: tuple[int, int], faults: _Faults) -> Iterator[Row]:
    """The rows whose label is a number from the first to the last of `own`."""
    first, last = own
    meant: dict[str, bool] = {}
    for row in rows:
        (label,) = row.labels
        if label not in meant:
            number = whole(label)
            if number is None:
                faults.add(row.line, f"{label!r} is no number, which label_range needs")
            meant[label] = number is not None and first <= number <= last
        if meant[label]:
            yield row


class _Faults:
    """Rows that are wrong: all are counted, the first few shown."""

    def __init__(self, where: object) -> None:
        self.where, self.count, self.shown = where, 0, list[str]()

    def add(self, line: int, what: str) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"line {line}: {what}")

    def raise_any(self) -> None:
        if self.count:
            raise DataError(
                f"{self.count} rows of the list are wrong:\n    " + "\n    ".join(self.shown),
                where=self.where,
                fix="mend them, or name other columns in the recipe",
            )


def _relative(row: Row, root: Path, faults: _Faults) -> str:
    name = row.path.strip().replace("\\", "/")
    if name.startswith("/"):
        try:
            name = Path(name).relative_to(root.absolute()).as_posix()
        except ValueError:
            faults.add(row.line, f"{name!r} lies outside the root {str(root)!r}")
    if not name or ".." in name.split("/"):
        faults.add(row.line, f"{name!r} is no path below the root")
    return name.removeprefix("./")
