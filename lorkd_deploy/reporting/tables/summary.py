"""Each expert's engines beside the foundation model: size, latency, speed-up, accuracy and AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorkd_deploy.profiling.figures import ACCURACY, AUC, P50, RATIO, SIZE
from lorkd_deploy.reporting.cells import (
    UNMEASURED,
    beside_cell,
    column,
    difference_cell,
    figure_cell,
    label,
    number,
)
from lorkd_deploy.reporting.shown_engine import RULE, chosen, fault
from lorkd_deploy.reporting.sources import Pair, Sources
from lorkd_deploy.reporting.table import Cell, Column, Table, Tone

CAPTION = (
    "In small print the foundation model, or the 95 % interval; latency is the median at the "
    "smallest batch."
)
_ENGINE = Column("engine", "Engine", numeric=False)
_COLUMNS = (
    Column("department", "Department", numeric=False),
    Column("size_bytes", "Engine size"),
    Column("p50_ms", "Latency", hint="median of one image, ms"),
    Column("speed_up", RATIO.title, hint=RATIO.hint),
    column(ACCURACY),
    Column("accuracy_difference", "Difference", hint="expert minus foundation model"),
    column(AUC),
    Column("auc_difference", "Difference in AUC", hint="expert minus foundation model"),
)
_TONES: dict[str, Tone] = {"faster": "good", "slower": "bad"}


def summary(sources: Sources) -> Table:
    """A row for each task: the engine that `chosen` picks, beside the foundation model.

    Engines are named where the run has several targets or precisions.
    """
    title, pairs = "Every department beside the foundation model", chosen(sources)
    if len({pair.target for pair in sources.pairs()}) == 1:
        rows = tuple(_row(pair) for pair in pairs)
        return Table("summary-table", title, CAPTION, _COLUMNS, rows)
    return _with_engines("summary-table", title, f"{CAPTION} {RULE}", sources, pairs)


def every_engine(sources: Sources, department: str) -> Table | None:
    """The same for all engines of a department; None where the summary has them all, or none was
    measured."""
    pairs = sources.pairs(department)
    if len(pairs) == len(sources.tasks(department)) or not sources.engines(department):
        return None
    title = "Every engine beside the foundation model"
    return _with_engines("every", title, CAPTION, sources, pairs)


def _with_engines(
    key: str, title: str, caption: str, sources: Sources, pairs: Sequence[Pair]
) -> Table:
    """A table with a column that names the engines."""
    rows = []
    for pair in pairs:
        department, *figures = _row(pair)
        rows.append((department, _engine(pair, sources), *figures))
    return Table(key, title, caption, (_COLUMNS[0], _ENGINE, *_COLUMNS[1:]), tuple(rows))


def _row(pair: Pair) -> tuple[Cell, ...]:
    """The cells of `_COLUMNS`."""
    task = "" if pair.task.name == pair.task.department else pair.task.name
    return (label(pair.task.department, note=task), *_speed(pair), *_quality(pair))


def _engine(pair: Pair, sources: Sources) -> Cell:
    """The engine's target and precision, and why it isn't accepted where it is not."""
    if not pair.target:
        return label(UNMEASURED, tone="quiet")
    return label(pair.target, note=fault(pair, sources.pairs_of(pair.task)) if pair.expert else "")


def _speed(pair: Pair) -> tuple[Cell, ...]:
    expert, teacher = pair.expert, pair.teacher
    if expert is None:
        return figure_cell(SIZE, pair.bytes), number(None), number(None)
    p50 = teacher.latency.p50.value if teacher else None
    return (
        beside_cell(SIZE, expert.bytes, teacher.bytes if teacher else None),
        beside_cell(P50, expert.latency.p50.value, p50),
        _speed_up(pair),
    )


def _speed_up(pair: Pair) -> Cell:
    """The speed-up with its interval, and that it shows none where it doesn't."""
    ratio = pair.ratio
    if ratio is None:
        return number(None)
    cell = figure_cell(RATIO, ratio.ratio)
    note = cell.note if ratio.verdict == "faster" else f"{cell.note}; {ratio.verdict}"
    return replace(cell, note=note, tone=_TONES.get(ratio.verdict, ""))


def _quality(pair: Pair) -> tuple[Cell, ...]:
    expert, teacher = pair.score(pair.expert), pair.score(pair.teacher)
    gain: Tone = "" if pair.weak_teacher else "good"
    cells: list[Cell] = []
    for figure, unit in ((ACCURACY, "points"), (AUC, "")):
        own, theirs = figure.of(expert), figure.of(teacher)
        change = figure.of(pair.difference)
        cells += [
            beside_cell(figure, own.value if own else None, theirs.value if theirs else None),
            difference_cell(figure, change, unit=unit, gain=gain),
        ]
    return tuple(cells)
