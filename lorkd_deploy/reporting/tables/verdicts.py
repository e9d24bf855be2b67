"""The first table: is each expert as good as the foundation model, and what is still to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.figures import ACCURACY, P50, RATIO, SIZE
from lorkd_deploy.reporting.cells import (
    difference_cell,
    in_unit,
    label,
    number,
    ratio_cell,
    significant,
)
from lorkd_deploy.reporting.facts.counts import Counts, counts, right
from lorkd_deploy.reporting.facts.shown_engine import RULE, chosen
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.facts.to_do import to_do
from lorkd_deploy.reporting.facts.verdicts import Verdict, margin, verdict
from lorkd_deploy.reporting.table import Cell, Column, Table
from lorkd_deploy.reporting.words import source_of

TITLE = "Is it as good as the foundation model?"
CAPTION = (
    "Of these engines on these test images, by the paired 95 % interval of the difference in "
    "accuracy; the margin of {margin:g} points is the recipe's. A statement on the method takes "
    "several trainings: `lorkd study`."
)
NOTHING = "nothing that is known here"
_COLUMNS = (
    Column("department", "Department", numeric=False),
    Column("verdict", "The expert is", numeric=False, hint="beside the foundation model"),
    Column("answers", "On the test images", numeric=False),
    Column("speed_up", RATIO.title, hint=RATIO.hint),
    Column("engine", "Engine", numeric=False),
    Column("valid_for", "Valid for images like", numeric=False),
    Column("to_do", "Still to do", numeric=False),
)


def verdicts(sources: Sources) -> Table:
    """A row for each task, of the engine that `chosen` picks."""
    points = margin(sources)
    rows = tuple(_row(sources, pair, points) for pair in chosen(sources))
    caption = CAPTION.format(margin=points)
    if len({pair.target for pair in sources.pairs()}) > 1:
        caption += f" {RULE}"
    return Table("verdicts", TITLE, caption, _COLUMNS, rows)


def _row(sources: Sources, pair: Pair, points: float) -> tuple[Cell, ...]:
    task, found = pair.task, verdict(pair, points)
    missing = to_do(sources, pair, found)
    return (
        label(task.department, note="" if task.name == task.department else task.name),
        label(found.word, tone=found.tone, note=_difference(found)),
        in_counts(sources, pair),
        _speed_up(pair),
        _engine(pair),
        valid_for(sources, pair),
        label("; ".join(missing) or NOTHING, tone="" if missing else "quiet"),
    )


def _difference(found: Verdict) -> str:
    if found.difference is None:
        return ""
    cell = difference_cell(ACCURACY, found.difference, unit="points")
    return f"accuracy {cell.text} ({cell.note})"


def in_counts(sources: Sources, pair: Pair) -> Cell:
    """The expert's answers in counts, the foundation model's below them."""
    ours, theirs = (counts(sources, pair.task, e) for e in (pair.expert, pair.teacher))
    if ours:
        found, shown, alarms, absent = _summed(ours)
        many = pair.task.kind == "multilabel"
        what, others = ("findings", "absent ones") if many else (ours[0].finding, "others")
        said = f"{found:,} of {shown:,} {what} found, {alarms:,} of {absent:,} {others} called so"
        found, _, alarms, _ = _summed(theirs)
        return label(said, note=f"foundation model: {found:,} and {alarms:,}" if theirs else "")
    own, other = (right(sources, pair.task, e) if e else None for e in (pair.expert, pair.teacher))
    if own is None:
        return number(None)
    note = f"foundation model: {other[0]:,}" if other else ""
    return label(f"{own[0]:,} of {own[1]:,} right", note=note)


def _summed(found: Sequence[Counts]) -> tuple[int, int, int, int]:
    """Found, shown, alarms and absent, over all findings."""
    return (
        sum(each.found for each in found),
        sum(each.shown for each in found),
        sum(each.alarms for each in found),
        sum(each.absent for each in found),
    )


def _speed_up(pair: Pair) -> Cell:
    ratio = pair.ratio
    if ratio is None or pair.expert is None or pair.teacher is None:
        return number(None)
    own = significant(pair.expert.latency.p50.value)
    note = f"{own} of {in_unit(P50, pair.teacher.latency.p50.value)}"
    return replace(ratio_cell(ratio), note=note)


def _engine(pair: Pair) -> Cell:
    """Runtime and precision, and the size of the files."""
    if pair.bytes is None:
        return number(None)
    size = in_unit(SIZE, pair.bytes)
    of = f" of {in_unit(SIZE, pair.teacher.bytes)}" if pair.teacher else ""
    return label(pair.target, note=size + of)


def valid_for(sources: Sources, pair: Pair) -> Cell:
    """Where the images of a task come from: what its figures hold for, and nothing else."""
    score = pair.score(pair.expert)
    notes = [f"{score.images:,} test images" if score else "", _dicom(pair.task)]
    notes.append("a guard tells others" if pair.task.safety.guard else "")
    size = sources.manifest.preprocess.size
    text = f"{source_of(pair.task)}, at {size} px"
    return label(text, note="; ".join(filter(None, notes)))


def _dicom(task: TaskEntry) -> str:
    rules = task.dicom
    return f"DICOM {', '.join(rules.modality)}" if rules and rules.modality else ""
