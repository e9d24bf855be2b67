"""Confusion matrices of a task's test images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.metrics.decisions import decided
from lorkd_deploy.reporting.cells import FOUNDATION, label, number
from lorkd_deploy.reporting.facts.answers import Answers
from lorkd_deploy.reporting.table import Cell, Column, Table


def confusion(answers: Answers) -> Iterator[Table]:
    """How often each class was taken for which, a table for each model; the findings of a
    multi-label task have four counts each."""
    for model, probabilities in answers.models.items():
        given = decided(probabilities, answers.labels)
        key = "confusion-teacher" if model == FOUNDATION else "confusion-expert"
        if answers.labels.ndim == 2:
            yield _findings(answers, given, key, f"Findings: {model.lower()}")
        else:
            yield _matrix(answers, given, key, f"Confusion: {model.lower()}")


def _matrix(answers: Answers, given: I64, key: str, title: str) -> Table:
    classes = answers.task.classes
    counts = np.bincount(answers.labels * len(classes) + given, minlength=len(classes) ** 2)
    square = counts.reshape(len(classes), len(classes))
    rows = []
    for name, row in zip(classes, square.tolist(), strict=True):
        total = max(1, sum(row))
        rows.append((label(name), *(_count(value, total) for value in row)))
    columns = (
        Column("true", "True class", numeric=False),
        *(Column(f"answered {name}", f"as {name}") for name in classes),
    )
    caption = (
        f"Task {answers.task.name}, test images, {answers.engine}: a row is what an image shows, a "
        "column what was answered (the most probable class)."
    )
    return Table(key, title, caption, columns, tuple(rows))


def _count(value: int, total: int) -> Cell:
    return Cell(f"{value:,}", value, f"{100 * value / total:.0f} %", shade=value / total)


def _findings(answers: Answers, given: I64, key: str, title: str) -> Table:
    columns = (
        Column("finding", "Finding", numeric=False),
        Column("found", "Found", hint="there, and said to be"),
        Column("missed", "Missed", hint="there, and not said to be"),
        Column("false_alarms", "False alarms", hint="not there, and said to be"),
        Column("cleared", "Cleared", hint="not there, and not said to be"),
    )
    rows = []
    for index, name in enumerate(answers.task.classes):
        truth, said = answers.labels[:, index] == 1, given[:, index] == 1
        four = (truth & said, truth & ~said, ~truth & said, ~truth & ~said)
        rows.append((label(name), *(number(int(part.sum())) for part in four)))
    caption = (
        f"Task {answers.task.name}, test images, {answers.engine}, from a probability of 0.5 on."
    )
    return Table(key, title, caption, columns, tuple(rows))
