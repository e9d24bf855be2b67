"""`split_data`: lists of images whose splits share no patient and no picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.dicom import patients, pixels
from lorkd_deploy.data.dividing import divide
from lorkd_deploy.data.files import ImageFiles, Paths
from lorkd_deploy.data.source import SPLITS, Split
from lorkd_deploy.data.table import open_table
from lorkd_deploy.datacheck.common import Common
from lorkd_deploy.datacheck.pictures import Pictures, look
from lorkd_deploy.datacheck.twins import clusters, exact_within, near
from lorkd_deploy.dicom import DicomRules, is_dicom
from lorkd_deploy.errors import DataError, UsageError
from lorkd_deploy.image_files import image_files, read_image
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import write_atomic


class Division(Part):
    """What `split_data` wrote: images a split, groups, and how many images have a twin."""

    out: Path
    images: dict[str, int]
    groups: int
    twins: int


@dataclass(frozen=True)
class _Listing:
    """A CSV's rows, or a folder's files as rows; which columns are image, label and group."""

    columns: list[str]
    rows: list[list[str]]
    image: int
    label: int
    group: int | None
    root: Path


def split_data(
    source: str | Path,
    out: str | Path,
    *,
    group: str | None = None,
    image: str = "path",
    label: str = "label",
    root: str | Path | None = None,
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    size: int = 64,
    seed: int = 0,
    dicom: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Division:
    """Write `out`, a CSV with a column `split` and a column `cluster`, for `data: {source: csv}`.

    `source` is a CSV with the columns `image`, `label` and, where it is given, `group`, or a folder
    `CLASS/*.png` or `CLASS/PATIENT/*.png`. Patients stay whole, and so do near twins: pictures that
    are nearly the same at `size` px join their patients into one cluster. Classes keep their
    shares; `seed` decides which image goes where. `shares` are those of train, val and test.
    `dicom` are the rules by which DICOM files become pixels (`DicomRules`); where all images are
    such files and no `group` is given, their headers say who the patients are.
    Raises `DataError` for files that are missing or no images, `UsageError` for shares that aren't.
    """
    source, out = Path(source), Path(out)
    rules = DicomRules().overridden(dicom or {})
    if min(shares) <= 0:
        raise UsageError(f"shares are positive numbers, here: {shares}", fix="for example 70,10,20")
    listing = _of_folder(source) if source.is_dir() else _of_csv(source, image, label, group, root)
    if {"split", "cluster"} & {name.lower() for name in listing.columns}:
        raise DataError(
            "the list has a column `split` or `cluster` already",
            where=source,
            fix="rename it, or use the list as it is: `lorkd data check` says whether it leaks",
        )
    labels = _numbers([row[listing.label] for row in listing.rows])
    cluster, twins = _clusters(listing, labels, size, rules, progress)
    split = divide(labels, cluster, shares, seed)
    _write(out, listing, split, cluster)
    counts = {name: int((split == n).sum()) for n, name in enumerate(SPLITS)}
    return Division(out=out, images=counts, groups=len(np.unique(cluster)), twins=twins)


def _of_csv(
    path: Path, image: str, label: str, group: str | None, root: str | Path | None
) -> _Listing:
    table = open_table(path)
    return _Listing(
        list(table.columns),
        [list(row) for _, row in table.rows()],
        table.column(image, "the images' paths"),
        table.column(label, "labels"),
        None if group is None else table.column(group, "the groups"),
        path.parent if root is None else Path(root),
    )


def _of_folder(folder: Path) -> _Listing:
    files = image_files(folder, dicom=True).files
    names = [path.relative_to(folder).as_posix() for path in files]
    deep = [name for name in names if "/" in name]
    if not deep:
        raise DataError(
            "the folder has no images in folders of classes",
            where=folder,
            fix="the layout is CLASS/*.png or CLASS/PATIENT/*.png",
        )
    if all(map(is_dicom, files)):  # who the patient is stands in them, and a folder is a series
        rows = [[name, name.partition("/")[0]] for name in deep]
        return _Listing(["path", "label"], rows, 0, 1, None, folder)
    rows = []
    for name in deep:
        kind, *rest = name.split("/")
        # An image that lies in its class's folder itself is a patient of its own.
        rows.append([name, kind, rest[0] if len(rest) > 1 else name])
    return _Listing(["path", "label", "group"], rows, 0, 1, 2, folder)


def _numbers(texts: Sequence[str]) -> I64:
    _, numbers = np.unique(np.array([text.strip() for text in texts]), return_inverse=True)
    return numbers.astype(np.int64)


def _clusters(
    listing: _Listing, labels: I64, size: int, rules: DicomRules, progress: Progress | None
) -> tuple[I64, int]:
    paths = Paths.of(listing.root, (row[listing.image].strip() for row in listing.rows))
    lost = [place for place in range(len(paths)) if not paths[place].is_file()]
    if lost or not len(paths):
        raise DataError(
            f"{len(lost)} of {len(paths)} files are missing, the first {paths.name(lost[0])!r}"
            if lost
            else "the list names no image",
            where=listing.root,
            fix="check --root, which the paths are relative to",
        )
    split = Split(ImageFiles(paths, partial(_read, rules=rules)), labels)
    with bar(progress, "reading images", len(split)) as shown:
        seen = look(split, Preprocess(size=size), shown)
    with bar(progress, "comparing images", len(split)) as shown:
        pairs = list(_pairs(seen, shown))
    twins = len(np.unique(np.concatenate([np.concatenate(pair) for pair in pairs])))
    number = None
    if listing.group is not None:
        names = [row[listing.group].strip() or f"\0{n}" for n, row in enumerate(listing.rows)]
        number = _numbers(names)
    elif all(map(is_dicom, paths)):
        number = patients(paths)
    if number is not None:
        order = np.argsort(number, kind="stable")
        same = number[order][1:] == number[order][:-1]
        pairs.append((order[1:][same], order[:-1][same]))
    return clusters(len(split), iter(pairs)), twins


def _read(path: Path, rules: DicomRules) -> U8:
    return pixels(path, rules) if is_dicom(path) else read_image(path)


def _pairs(seen: Pictures, progress: Progress) -> Iterator[tuple[I64, I64]]:
    for pairs in (exact_within(seen), near(seen, seen, Common(seen), progress)):
        yield pairs.first, pairs.second


def _write(out: Path, listing: _Listing, split: I64, cluster: I64) -> None:
    """The rows as they were, with their split and cluster; paths relative to the same root."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*listing.columns, "split", "cluster"])
    for row, number, group in zip(listing.rows, split, cluster, strict=True):
        writer.writerow([*row, SPLITS[number], int(group)])
    write_atomic(out, text.getvalue().encode())
