"""The experts' answers by sex, age, device or site, and the largest gap between two of them."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import OF_ANSWERS
from lorkd_deploy.profiling.profile import Gap
from lorkd_deploy.reporting.cells import column, figure_cell, label, number
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

TOO_FEW = "too few to tell"
SUBGROUPS = (
    "The expert's answers to the test images of each value; of fewer than 30 nothing is said. "
    "Sensitivity and specificity are those at the threshold of all."
)
GAPS = (
    "Between the two values of an attribute that are farthest apart in accuracy. The p-value says "
    "how often chance alone makes a gap as large in any of the task's attributes; the images are "
    "taken as independent."
)


def subgroups(sources: Sources, department: str) -> Table | None:
    """A row for each value of each attribute; None where the data has no attributes."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("attribute", "Attribute", numeric=False),
        Column("value", "Value", numeric=False),
        Column("images", "Images"),
        *map(column, OF_ANSWERS),
    )
    rows = []
    for pair in sources.pairs(department):
        score = pair.score(pair.expert)
        for group in score.subgroups if score else ():
            few = Cell(TOO_FEW, None, tone="quiet")
            rows.append(
                (
                    label(pair.task.name, note=pair.target),
                    label(group.attribute),
                    label(group.value),
                    number(group.images),
                    *(
                        figure_cell(figure, getattr(group.quality, figure.key))
                        if group.quality
                        else few
                        for figure in OF_ANSWERS
                    ),
                )
            )
    if not rows:
        return None
    return Table("subgroups", "By subgroup", SUBGROUPS, columns, tuple(rows))


def gaps(sources: Sources, department: str) -> Table | None:
    """A row for each attribute; None where none has two values with enough images."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("attribute", "Attribute", numeric=False),
        Column("best", "Best", numeric=False),
        Column("worst", "Worst", numeric=False),
        Column("gap_points", "Gap in accuracy", hint="points"),
        Column("p", "p, corrected"),
    )
    rows = [
        (label(pair.task.name, note=pair.target), *_gap(gap))
        for pair in sources.pairs(department)
        if (score := pair.score(pair.expert))
        for gap in score.gaps
    ]
    if not rows:
        return None
    return Table("subgroup-gaps", "Largest gap between subgroups", GAPS, columns, tuple(rows))


def _gap(gap: Gap) -> tuple[Cell, ...]:
    points = 100 * gap.accuracy
    return (
        label(gap.attribute),
        label(gap.best),
        label(gap.worst),
        Cell(f"{points:.1f} points", points),
        number(gap.p, 2),
    )
