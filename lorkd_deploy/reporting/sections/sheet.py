"""A department on one sheet of paper: what its head is given to read and to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorkd_deploy.profiling.figures import OF_ANSWERS
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION, difference_cell, figure_cell, label
from lorkd_deploy.reporting.facts.answers import answers_of_pair
from lorkd_deploy.reporting.facts.shown_engine import chosen
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.plots.curves import calibration, roc
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Column, Table
from lorkd_deploy.reporting.tables.confusion import confusion
from lorkd_deploy.reporting.tables.predictive import Worth, predictive

MOST_CLASSES = 8  # of which the matrix fits beside the figures


@dataclass(frozen=True)
class Part:
    """One task: the first table's row as terms and texts, the engine's figures, and its plots."""

    task: str
    facts: tuple[tuple[str, str, str], ...]  # title, text, small print
    figures: Table | None
    predictive: Table | None
    confusion: Table | None
    curves: tuple[Figure, ...]


@dataclass(frozen=True)
class Sheet:
    """A department's sheet; `key` is its anchor."""

    key: str
    name: str
    parts: tuple[Part, ...]


def sheets(sources: Sources, first: Table, worth: Sequence[Worth]) -> tuple[Sheet, ...]:
    """One for each department, of the engines that the `first` table shows and what `worth` says of
    these."""
    titles = [column.title for column in first.columns[1:]]
    parts: dict[str, list[Part]] = {}
    for pair, row in zip(chosen(sources), first.rows, strict=True):
        facts = tuple((t, c.text, c.note) for t, c in zip(titles, row[1:], strict=True))
        own = tuple(entry for entry in worth if entry.task == pair.task.name)
        parts.setdefault(pair.task.department, []).append(_part(sources, pair, facts, own))
    return tuple(
        Sheet(f"sheet-{number}", name, tuple(parts[name]))
        for number, name in enumerate(sources.manifest.departments, 1)
    )


def _part(
    sources: Sources, pair: Pair, facts: tuple[tuple[str, str, str], ...], worth: tuple[Worth, ...]
) -> Part:
    kept = answers_of_pair(sources, pair)
    matrices: Sequence[Table] = list(confusion(kept)) if kept else ()
    fits = len(pair.task.classes) <= MOST_CLASSES
    return Part(
        pair.task.name,
        facts,
        _figures(pair),
        predictive(worth),
        matrices[-1] if matrices and fits else None,
        (roc(kept), calibration(kept)) if kept else (),
    )


def _figures(pair: Pair) -> Table | None:
    """A row a figure of the answers: the expert's, the foundation model's, their difference."""
    columns = (
        Column("figure", "Figure", numeric=False),
        Column("expert", EXPERT),
        Column("teacher", FOUNDATION),
        Column("difference", "Difference"),
    )
    own, theirs = pair.score(pair.expert), pair.score(pair.teacher)
    rows = tuple(
        (
            label(figure.title),
            *(figure_cell(figure, figure.of(score)) for score in (own, theirs)),
            difference_cell(figure, figure.of(pair.difference)),
        )
        for figure in OF_ANSWERS
        if figure.of(own) is not None
    )
    if not rows:
        return None
    caption = "On the test images, with 95 % intervals; differences in points, of AUC as they are."
    return Table("figures", "Figures", caption, columns, rows).without_gaps()
