"""The page of `lorkd data check`: findings by task, and the worst pairs as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.data import open_data
from lorkd_deploy.datacheck.result import DataCheck, Pair, TaskCheck
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.reporting.cells import label, number
from lorkd_deploy.reporting.facts.samples import png_link
from lorkd_deploy.reporting.html import document
from lorkd_deploy.reporting.table import Column, Table, Tone
from lorkd_deploy.storage import write_atomic

TONES: dict[str, Tone] = {"leakage": "bad", "caution": "", "note": "quiet"}


@dataclass(frozen=True)
class Shown:
    """Two twins: their pictures as data links, and what is said of each."""

    pictures: tuple[str, str]
    names: tuple[str, str]
    title: str
    disagree: bool


@dataclass(frozen=True)
class DataPage:
    """The page's content, in the order in which it is read."""

    name: str
    dateline: str
    title: str
    lead: str
    findings: Table
    sizes: Table
    pairs: tuple[tuple[str, tuple[Shown, ...]], ...]


def write_page(check: DataCheck, recipe: Recipe, out: Path) -> None:
    """Write the page to `out`; it holds pictures of the data, which may be patients'.

    Raises `RuntimeUnavailableError` where jinja2 is missing.
    """
    write_atomic(out, document("data.html", data_page(check, recipe)).encode())


def data_page(check: DataCheck, recipe: Recipe) -> DataPage:
    """What the page says; the pictures of the pairs are read again."""
    count = len(check.leaks)
    return DataPage(
        name=check.recipe,
        dateline=f"{check.recipe}, {len(check.tasks)} tasks, {check.created}",
        title=f"{count} of {len(check.tasks)} tasks leak" if count else "No leak was found",
        lead=(
            f"Images or patients of {', '.join(check.leaks)} lie in two splits: figures on them "
            "are too good."
            if count
            else "No image of a validation or test split is in another split too, nor is a patient "
            "where patients are known."
        ),
        findings=findings_table(check),
        sizes=sizes_table(check),
        pairs=tuple((task.task, _pairs(task, recipe)) for task in check.tasks if task.pairs),
    )


def findings_table(check: DataCheck) -> Table:
    """A row for each finding."""
    columns = ("task", "level", "finding", "count", "says")
    titles = ("Task", "Level", "Finding", "Count", "What it says")
    rows = [
        (
            label(task.task),
            label(finding.level, tone=TONES[finding.level]),
            label(finding.kind),
            number(finding.count),
            label(finding.says),
        )
        for task in check.tasks
        for finding in task.findings
    ]
    return Table(
        "findings",
        "Findings",
        "Leakage makes figures too good. A caution may, or says that a figure will be uncertain.",
        tuple(Column(k, t, numeric=k == "count") for k, t in zip(columns, titles, strict=True)),
        tuple(rows),
    )


def sizes_table(check: DataCheck) -> Table:
    """A row for each split: how sure a figure on it can be."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("split", "Split", numeric=False),
        Column("images", "Images"),
        Column("groups", "Patients or cases"),
        Column(
            "standard_error_points",
            "Standard error of 80 %, points",
            hint="of an accuracy of 80 %: the root of 0.8 · 0.2 / n, n being patients or cases "
            "where they are known, else images",
        ),
    )
    rows = [
        (
            label(task.task),
            label(split.name),
            number(split.images),
            label("not known") if split.groups is None else number(split.groups),
            number(split.standard_error),
        )
        for task in check.tasks
        for split in task.splits
    ]
    caption = "What the size of each split leaves open, whatever the model."
    return Table("sizes", "Sizes of the splits", caption, columns, tuple(rows))


def _pairs(task: TaskCheck, recipe: Recipe) -> tuple[Shown, ...]:
    data = open_data(recipe.task(task.task).data, recipe.data_folder)
    found = []
    for pair in task.pairs:
        both = [
            recipe.preprocess.geometry(getattr(data, split).images[place])
            for split, place in zip(pair.splits, pair.places, strict=True)
        ]
        names = [
            f"{s}: {n}, {kind}"
            for s, n, kind in zip(pair.splits, pair.names, pair.labels, strict=True)
        ]
        found.append(
            Shown(
                (png_link(both[0]), png_link(both[1])),
                (names[0], names[1]),
                _title(pair),
                pair.labels[0] != pair.labels[1],
            )
        )
    return tuple(found)


def _title(pair: Pair) -> str:
    alike = "the same pixels" if pair.exact else f"likeness {pair.likeness:.3f}"
    return alike + (", mirrored" if pair.mirrored else "")
