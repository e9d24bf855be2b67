"""A study's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorkd_deploy.evidence.analysis.comparison import Comparison, Difference
from lorkd_deploy.evidence.analysis.statistics import Estimate
from lorkd_deploy.evidence.methods.table import METHODS
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.reporting.cells import label, number
from lorkd_deploy.reporting.table import Cell, Column, Table, Tone

TITLES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "kappa": "Kappa of grades",
}
_TONES: dict[str, Tone] = {"better": "good", "worse": "bad", "not shown": "quiet"}
_TURNED: dict[str, Tone] = {"better": "bad", "worse": "good", "not shown": ""}
_METHOD = Column("method", "Method", numeric=False)


def others(result: StudyResult) -> list[str]:
    """The variants that the first one is compared with."""
    return [name for name in result.variants if name != result.first]


def interval(estimate: Estimate, digits: int = 3, *, signed: bool = False) -> Cell:
    """The value, and the bounds of the interval that decides."""
    sign = "+" if signed else ""
    text = f"{estimate.value:{sign}.{digits}f}".replace("-", "−")
    bounds = estimate.interval
    if bounds is None:
        return Cell(text, estimate.value, "one seed")
    note = f"{bounds.low:{sign}.{digits}f} to {bounds.high:{sign}.{digits}f}".replace("-", "−")
    return Cell(text, estimate.value, note)


def name_cell(variant: str) -> Cell:
    return label(variant, note=METHODS[variant.partition("+")[0]].title)


def methods_table(result: StudyResult) -> Table:
    columns = [_METHOD]
    columns += [Column(metric, TITLES[metric]) for metric in result.comparison.metrics]
    columns += [
        Column("parameters", "Parameters", hint="of one task's network, as it is deployed"),
        Column("stored", "For all tasks", hint="parameters that all tasks need together"),
        Column("mib", "Size, MiB", hint="of one task's network as ONNX in float32"),
        Column("latency_ms", "Latency, ms", hint="median at batch 1, ONNX Runtime, one thread"),
    ]
    rows, found = [], result.comparison
    for variant in result.variants:
        cost = result.costs[variant]
        rows.append(
            (
                name_cell(variant),
                *(interval(found.figure(variant, None, m).estimate) for m in found.metrics),
                number(cost.parameters),
                number(cost.stored),
                number(cost.mib),
                number(cost.latency),
            )
        )
    caption = "Means over all tasks and seeds on the test images, with 95 % intervals."
    return Table("methods", "Every method", caption, tuple(columns), tuple(rows))


def differences_table(
    found: Comparison, seconds: Mapping[str, Cell], key: str, title: str, caption: str
) -> Table:
    """The first variant minus each of `seconds`, over all tasks; these give each row its name."""
    columns = [Column("against", "Against", numeric=False)]
    for metric in found.metrics:
        columns.append(Column(metric, TITLES[metric]))
        columns.append(Column(f"{metric}_verdict", "In words", numeric=False))
    rows = []
    for second, name in seconds.items():
        cells = [name]
        for metric in found.metrics:
            difference = found.difference(second, None, metric)
            cells += [interval(difference.estimate, signed=True), word(difference)]
        rows.append(tuple(cells))
    return Table(key, title, caption, tuple(columns), tuple(rows))


def word(found: Difference) -> Cell:
    """Better, worse or not shown, with its p-value, and with the seeds that would show it."""
    note = f"p {found.p:.3f}" if found.p >= 0.001 else "p < 0.001"
    if found.verdict == "not shown" and len(found.seeds) > 1:
        seeds = (
            "more seeds alone wouldn't" if found.needed is None else f"{found.needed} seeds would"
        )
        note += f"; {seeds} show it"
    return Cell(found.verdict, found.verdict, note, _TONES[found.verdict])


def task_table(result: StudyResult, metric: str) -> Table:
    columns = [_METHOD]
    columns += [Column(task, task) for task in result.tasks_of(metric)]
    rows = []
    for variant in result.variants:
        cells = [name_cell(variant)]
        for task in result.tasks_of(metric):
            cell = interval(result.comparison.figure(variant, task, metric).estimate)
            if variant != result.first:
                found = result.comparison.difference(variant, task, metric)
                cell = replace(cell, tone=_TURNED[found.verdict])
            cells.append(cell)
        rows.append(tuple(cells))
    caption = (
        f"With 95 % intervals. Coloured: shown to differ from {result.first}, p-values corrected "
        "over the tasks."
    )
    return Table(f"tasks-{metric}", TITLES[metric], caption, tuple(columns), tuple(rows))


def mig_tables(result: StudyResult) -> tuple[Table, ...]:
    if not result.directions:
        return ()
    columns = (
        _METHOD,
        Column("within", "Class, within a task"),
        Column("task", "Task"),
        Column("classes", "Task and class"),
    )
    rows = tuple(
        (
            name_cell(name),
            interval(found.within),
            interval(found.task) if found.task else label("one task", tone="quiet"),
            interval(found.classes),
        )
        for name, found in result.directions.items()
    )
    main = Table("mig", "Mutual information gap", "0: shared out, 1: one direction.", columns, rows)
    settings = next(iter(result.directions.values())).settings
    wide = (
        _METHOD,
        *(
            Column(f"{s.bins}-{s.dimensions}", f"{s.bins} bins, {s.dimensions} directions")
            for s in settings
        ),
    )
    values = tuple(
        (name_cell(name), *(number(setting.within) for setting in found.settings))
        for name, found in result.directions.items()
    )
    caption = "Within a task, mean over tasks and seeds."
    return main, Table("mig-settings", "With other bins and directions", caption, wide, values)
