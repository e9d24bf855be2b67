"""Images and labels of one task, whatever they come from; one module per source.

A source is a module here with a section of the recipe, a `DataSource` that loads what it names:
the module is all that a new source takes. What every source has to keep is checked once, in
`open_data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Union

import numpy as np
from pydantic import Field

from lorkd_deploy.arrays import I64
from lorkd_deploy.data.source import (
    SPLITS,
    Attribute,
    DataSource,
    Split,
    TaskData,
    data_folders,
    image_sha256,
    locate,
)
from lorkd_deploy.errors import DataError, LorkdError
from lorkd_deploy.progress import Progress, bar

__all__ = [
    "SPLITS",
    "Attribute",
    "DataSource",
    "DataSpec",
    "Split",
    "TaskData",
    "data_folders",
    "image_sha256",
    "locate",
    "open_data",
    "open_every",
]
OPENERS = 8  # tasks opened at a time: lists and archives wait for disks and networks

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
_SECTIONS = tuple(sorted(DataSource.__subclasses__(), key=lambda section: section.__module__))
if TYPE_CHECKING:
    DataSpec = DataSource
else:
    DataSpec = Annotated[Union[_SECTIONS], Field(discriminator="source")]  # noqa: UP007


def open_data(
    spec: DataSource, folder: str | Path | None = None, *, download: bool = False
) -> TaskData:
    """Open what a recipe's `data:` names; files are looked for in `data_folders(folder)`.

    Labels are read and checked, images are read when they are asked for. `download` lets a source
    that can fetch its files do so; without it nothing leaves this machine. Raises `DataError` for
    data that is missing, damaged or contradicts itself, `UsageError` for an unknown set.
    """
    folders = data_folders(folder)
    if download:
        spec.fetch(folders)
    return _checked(spec.load(folders))


def open_every(
    sections: Mapping[str, DataSource],
    folder: str | Path | None = None,
    *,
    download: bool = False,
    progress: Progress | None = None,
) -> tuple[TaskData, ...]:
    """`open_data` of several tasks' `sections`, by name, several at a time; a bar shows them.

    Downloads come one after the other. The first task in order that has a fault is named by it.
    """
    folders = data_folders(folder)

    def opened(task: str) -> TaskData:
        with _of_task(task):
            return _checked(sections[task].load(folders))

    made = []
    with (
        bar(progress, "opening the data", len(sections)) as shown,
        ThreadPoolExecutor(OPENERS) as pool,
    ):
        for task, section in sections.items() if download else ():
            with _of_task(task):
                section.fetch(folders)
        for task, data in zip(sections, pool.map(opened, sections), strict=True):
            made.append(data)
            shown.advance(task=task)
    return tuple(made)


@contextmanager
def _of_task(task: str) -> Iterator[None]:
    try:
        yield
    except LorkdError as exc:
        raise DataError(f"task {task!r}: {exc.what}", where=exc.where, fix=exc.fix) from exc


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
