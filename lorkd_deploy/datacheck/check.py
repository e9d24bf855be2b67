"""`check_data(recipe)`: what is wrong with a recipe's images before anything is trained on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import I64
from lorkd_deploy.data import SPLITS, Split, TaskData, open_every
from lorkd_deploy.datacheck.common import Common
from lorkd_deploy.datacheck.findings import ACROSS, Found, findings, shared_groups
from lorkd_deploy.datacheck.kept import Kept
from lorkd_deploy.datacheck.pictures import Pictures, look
from lorkd_deploy.datacheck.result import DataCheck, Finding, Pair, SplitSize, TaskCheck
from lorkd_deploy.datacheck.twins import NONE, Pairs, exact, exact_within, near
from lorkd_deploy.errors import RecipeError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.recipe import Recipe, TaskSpec, load_recipe

SHOWN = 20  # pairs of a task that a page shows


def check_data(
    recipe: str | Path | Recipe, *, set: Sequence[str] = (), progress: Progress | None = None
) -> DataCheck:
    """Look at every image of every task of `recipe`, as the network sees it.

    `set` overrides values of the recipe, as `load_recipe` takes them. Finds exact and near
    duplicates across splits, patients in two splits, labels of twins that disagree, small classes,
    images of one value, labels that follow size, format, brightness or site, and test images that
    no training image resembles. Raises `DataError` for data that can't be opened or read.
    """
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, set)
    sections = {task.name: task.data for task in known.tasks}
    opened = open_every(sections, known.data_folder, progress=progress)
    checks = []
    for task, data in zip(known.tasks, opened, strict=True):
        kept = Kept(task, data, known.preprocess, progress)
        checks.append(kept.made(partial(check_task, task, data, known.preprocess, progress)))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DataCheck(created=now, recipe=known.name, tasks=tuple(checks))


def check_task(
    task: TaskSpec,
    data: TaskData,
    preprocess: Preprocess,
    progress: Progress | None = None,
    *,
    leaks_only: bool = False,
) -> TaskCheck:
    """The check of one task's opened data; `leaks_only` looks for twins and patients alone."""
    data = with_groups(data, task.group_pattern)
    seen: dict[str, Pictures] = {}
    total = sum(len(getattr(data, name)) for name in SPLITS)
    with bar(progress, f"reading {task.name}", total) as shown:
        for name in SPLITS:
            seen[name] = look(getattr(data, name), preprocess, shown)
    found = Found(data, seen, _twins(task.name, seen, progress, leaks_only=leaks_only))
    pairs = tuple(_worst(data, found.across))
    said = _said(task, data, findings(found, leaks_only=leaks_only))
    return said.model_copy(update={"pairs": pairs})


def check_patients(task: TaskSpec, data: TaskData) -> TaskCheck:
    """The patients that lie in two splits, of a task whose images aren't read."""
    data = with_groups(data, task.group_pattern)
    found = tuple(shared_groups(data))
    return _said(task, data, found).model_copy(update={"compared": False})


def _said(task: TaskSpec, data: TaskData, found: tuple[Finding, ...]) -> TaskCheck:
    return TaskCheck(
        task=task.name,
        source=f"{data.provenance['source']} {data.provenance['name']}",
        splits=tuple(_size(name, getattr(data, name)) for name in SPLITS),
        findings=found,
    )


def _twins(
    name: str, seen: dict[str, Pictures], progress: Progress | None, *, leaks_only: bool
) -> dict[tuple[str, str], tuple[Pairs, Pairs]]:
    """The same and nearly the same pictures, across two splits and within one; near ones within
    one are no leak."""
    common = Common(seen["train"])
    twins: dict[tuple[str, str], tuple[Pairs, Pairs]] = {}
    within = [(split, split) for split in SPLITS]
    compared = ACROSS if leaks_only else (*ACROSS, *within)
    with bar(progress, f"comparing {name}", sum(len(seen[one]) for one, _ in compared)) as shown:
        for one, other in (*ACROSS, *within):
            same = exact(seen[one], seen[other]) if one != other else exact_within(seen[one])
            nearly = NONE
            if (one, other) in compared:
                nearly = near(seen[one], seen[other], common, shown)
            twins[one, other] = same, nearly
    return twins


def with_groups(data: TaskData, pattern: str | None) -> TaskData:
    """`data` with the patient or case that `pattern`'s first group finds in each file's path."""
    if pattern is None:
        return data
    search, numbers = re.compile(pattern).search, dict[str, int]()
    splits = {}
    for name in SPLITS:
        split: Split = getattr(data, name)
        paths = getattr(split.images, "paths", None)
        if paths is None:
            raise RecipeError(
                "group_pattern needs files, whose paths it is looked for in",
                where=f"{data.provenance['source']} {data.provenance['name']}",
                fix="leave it out; an archive has the keys train_groups, val_groups, test_groups",
            )
        groups = np.empty(len(split), np.int64)
        for place in range(len(split)):
            found = search(paths.name(place))
            if found is None:
                raise RecipeError(
                    f"group_pattern {pattern!r} is not found in {paths.name(place)!r}",
                    fix="write a pattern that every path has, with the patient in brackets: "
                    "'patient(\\d+)_'",
                )
            groups[place] = numbers.setdefault(found[1], len(numbers))
        splits[name] = Split(split.images, split.labels, groups, split.attributes)
    return TaskData(data.classes, data.kind, **splits, provenance=data.provenance)


def _size(name: str, split: Split) -> SplitSize:
    groups = None if split.groups is None else len(np.unique(split.groups))
    error = 100 * (0.8 * 0.2 / (groups or len(split))) ** 0.5
    return SplitSize(name=name, images=len(split), groups=groups, standard_error=round(error, 2))


def _worst(data: TaskData, twins: dict[tuple[str, str], tuple[Pairs, Pairs]]) -> list[Pair]:
    """Exact ones first, then those that are most alike, those whose labels disagree before others;
    an image of a test or validation split once."""
    found = []
    for (one, other), (same, nearly) in twins.items():
        for pairs, is_exact in ((same, True), (nearly, False)):
            best = np.argsort(-pairs.likeness, kind="stable")[: 50 * SHOWN]
            _, first = np.unique(pairs.first[best], return_index=True)
            for place in best[first]:
                found.append(_pair(data, (one, other), pairs, int(place), is_exact))
    found.sort(key=lambda p: (not p.exact, p.labels[0] == p.labels[1], -p.likeness))
    shown, asked = [], set[tuple[str, int]]()
    for pair in found:
        key = (pair.splits[0], pair.places[0])
        if key not in asked:
            asked.add(key)
            shown.append(pair)
    return shown[:SHOWN]


def _pair(
    data: TaskData, splits: tuple[str, str], pairs: Pairs, place: int, is_exact: bool
) -> Pair:
    places = (int(pairs.first[place]), int(pairs.second[place]))
    both = [getattr(data, name) for name in splits]
    names, labels = [], []
    for split, at, name in zip(both, places, splits, strict=True):
        paths = getattr(split.images, "paths", None)
        names.append(f"{name} {at}" if paths is None else paths.name(at))
        labels.append(_label(split.labels[at], data.classes))
    return Pair(
        splits=splits,
        places=places,
        names=(names[0], names[1]),
        labels=(labels[0], labels[1]),
        likeness=round(float(pairs.likeness[place]), 4),
        exact=is_exact,
        mirrored=bool(pairs.mirrored[place]),
    )


def _label(label: I64 | np.int64, classes: Sequence[str]) -> str:
    if isinstance(label, np.ndarray):
        shown: npt.NDArray[np.int64] = np.flatnonzero(label)
        return ", ".join(classes[i] for i in shown) or "no finding"
    return classes[int(label)]
