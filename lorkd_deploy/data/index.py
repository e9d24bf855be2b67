"""What a list of images says, row by row, kept as arrays: a million images in a hundred megabytes.

`csv`, `list` and `dicom` read their files into `Row`s; everything after that is here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I32, I64, U8
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
UNKNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown", "?"}
FEW = 8  # numbers of an attribute that are values of their own; more are put into bands
SHOWN = 5  # wrong rows that a message names


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


@dataclass
class _Coded:
    """A column of text as numbers: `codes[text]` is what stands for it."""

    codes: dict[str, int] = field(default_factory=dict)
    numbers: array[int] = field(default_factory=lambda: array("i"))

    def add(self, text: str) -> None:
        self.numbers.append(self.codes.setdefault(text.strip(), len(self.codes)))

    def array(self) -> I32:
        return np.array(self.numbers, np.int32)


@dataclass(frozen=True)
class Meaning:
    """What the columns mean: names of `findings` or else of `classes`, and of `attributes`.

    Without `classes` they are those that the training images show. Of a list that numbers the
    classes of several tasks only the rows from the first to the last number of `own` are meant, and
    `classes` begin at the first. `edges` are the bounds of the bands of an attribute that is a
    number; without them the training images' quartiles are.
    """

    findings: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    attributes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    own: tuple[int, int] | None = None

    @property
    def first(self) -> int:
        """The number of the first class, where `classes` names them."""
        return self.own[0] if self.own else 0


def index_rows(rows: Iterable[Row], root: Path, meaning: Meaning, where: object) -> Index:
    """The index of a list's rows; raises `DataError` for what can't be right, with its lines."""
    labels = [_Coded() for _ in meaning.findings or ("label",)]
    columns = [_Coded() for _ in meaning.attributes]
    groups, split, faults = _Coded(), bytearray(), _Faults(where)

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
    classes, numbers = _labels(labels, splits, meaning, where)
    attributes = {
        name: _attribute(column, edges, splits)
        for column, (name, edges) in zip(columns, meaning.attributes.items(), strict=True)
    }
    numbered = _groups(groups) if len(groups.numbers) else None
    return Index(paths, splits, numbers, numbered, attributes, classes)


def _own(rows: Iterable[Row], own: tuple[int, int], faults: _Faults) -> Iterator[Row]:
    """The rows whose label is a number from the first to the last of `own`."""
    first, last = own
    meant: dict[str, bool] = {}
    for row in rows:
        (label,) = row.labels
        if label not in meant:
            number = _whole(label)
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


def _labels(
    columns: Sequence[_Coded], split: U8, meaning: Meaning, where: object
) -> tuple[tuple[str, ...], I64]:
    if meaning.findings:
        states = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
        found = [_mapped(c, states, where, f"of {name!r}, 0 or 1") for name, c in
                 zip(meaning.findings, columns, strict=True)]  # fmt: skip
        return meaning.findings, np.stack(found, axis=1)
    (column,) = columns
    shown = set(np.unique(column.array()[split == 0]).tolist())
    texts = [text for text, code in column.codes.items() if code in shown]
    numbers = {text: number for text in column.codes if (number := _whole(text)) is not None}
    numbered = len(numbers) == len(column.codes)
    if meaning.classes is None:
        if numbered:
            order = sorted({numbers[text] for text in texts})
            place = {number: at for at, number in enumerate(order)}
            places = {text: place[n] for text, n in numbers.items() if n in place}
            classes = tuple(f"class-{number}" for number in order)
        else:
            classes = tuple(sorted(texts))
            places = {text: place for place, text in enumerate(classes)}
    else:
        classes = meaning.classes
        places = {name: place for place, name in enumerate(classes)}
        if numbered and not set(column.codes) & set(classes):
            offsets = {text: number - meaning.first for text, number in numbers.items()}
            places = {text: place for text, place in offsets.items() if 0 <= place < len(classes)}
    return classes, _mapped(column, places, where, f"of {', '.join(classes[:12])}")


def _mapped(column: _Coded, places: dict[str, int], where: object, which: str) -> I64:
    """The column's texts as their places; one that has none is a fault."""
    table = np.array([places.get(text, -1) for text in column.codes], np.int64)
    found = table[column.array()]
    if (wrong := int((found < 0).sum())) == 0:
        return found
    unknown = [repr(text) for text in column.codes if text not in places]
    raise DataError(
        f"{wrong} labels are none {which}: {', '.join(unknown[:SHOWN])}"
        + (" …" if len(unknown) > SHOWN else ""),
        where=where,
        fix="mend the labels, or list every class in the recipe; all classes need training images",
    )


def _whole(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _groups(column: _Coded) -> I64:
    """Numbers of patients; an image whose cell is empty is a group of its own."""
    numbers = column.array().astype(np.int64)
    unnamed = [code for text, code in column.codes.items() if text.lower() in UNKNOWN]
    alone = np.flatnonzero(np.isin(numbers, unnamed))
    numbers[alone] = len(column.codes) + np.arange(len(alone))
    return numbers


def _attribute(column: _Coded, edges: tuple[float, ...], split: U8) -> Attribute:
    known = [text for text in column.codes if text.lower() not in UNKNOWN]
    numbers = {text: value for text in known if (value := _number(text)) is not None}
    if not edges and (len(numbers) < len(known) or len(set(numbers.values())) <= FEW):
        values = tuple(sorted(known))
        places = {text: place for place, text in enumerate(values)}
        table = np.array([places.get(text, -1) for text in column.codes], np.int32)
        return Attribute(values, table[column.array()])
    each = np.array([numbers.get(text, np.nan) for text in column.codes])[column.array()]
    bounds = np.array(edges) if edges else _quartiles(each[split == 0])
    bands = np.where(np.isnan(each), -1, np.searchsorted(bounds, each, side="right"))
    return Attribute(_bands(bounds), bands.astype(np.int32))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _quartiles(values: npt.NDArray[np.float64]) -> F64:
    values = values[~np.isnan(values)]
    return np.unique(np.quantile(values, (0.25, 0.5, 0.75))) if len(values) else np.zeros(0)


def _bands(bounds: F64) -> tuple[str, ...]:
    if not len(bounds):
        return ("all",)
    inner = [f"{a:g} to < {b:g}" for a, b in pairwise(bounds)]
    return (f"< {bounds[0]:g}", *inner, f"≥ {bounds[-1]:g}")
