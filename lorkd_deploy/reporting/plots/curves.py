"""What lies behind a task's figures: confusion matrices, ROC and calibration curves.

All three come from the answers that the benchmark kept beside the profile. Where a task has
several engines, its first is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.metrics.decisions import BINS, bins, decided
from lorkd_deploy.metrics.score import F64, I64, one_against_rest
from lorkd_deploy.profiling.profile import answers_name, labels_name
from lorkd_deploy.reporting.cells import FOUNDATION, number, words
from lorkd_deploy.reporting.plots.figure import Figure, layout
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

HEIGHT = 340
GRID = np.linspace(0, 1, 101)  # false-alarm rates at which curves of several classes are averaged
_COLOURS = {FOUNDATION: "teacher", "Expert": "s0"}


@dataclass(frozen=True)
class TaskCurves:
    """A task's labels and the probabilities `(N, K)` of the teacher (if measured) and the expert,
    by the model's name; `engine` is the expert's."""

    task: TaskEntry
    engine: str
    labels: I64
    models: dict[str, F64]


def of_task(sources: Sources, task: TaskEntry) -> TaskCurves | None:
    """The answers of a task's first measured engine and its teacher; None where none were kept."""
    labels = sources.answers.get(labels_name(task.name))
    for pair in sources.pairs(task.department):
        if pair.task.name != task.name or pair.expert is None or labels is None:
            continue
        models = {}
        for model, engine in ((FOUNDATION, pair.teacher), ("Expert", pair.expert)):
            found = sources.answers.get(answers_name(task.name, engine.engine)) if engine else None
            if found is not None:
                models[model] = found
        if "Expert" in models:
            return TaskCurves(task, pair.target, labels, models)
    return None


def confusion(given: TaskCurves, key: str) -> Iterator[Table]:
    """How often each class was taken for which, a table a model; a multi-label task's findings
    each have their four counts."""
    for model, probabilities in given.models.items():
        end = "teacher" if model == FOUNDATION else "expert"
        answers = decided(probabilities, given.labels)
        name = model.lower()
        if given.labels.ndim == 2:
            yield _findings(given, answers, f"{key}-{end}", f"Findings: {name}")
        else:
            yield _matrix(given, answers, f"{key}-{end}", f"Confusion: {name}")


def _matrix(given: TaskCurves, answers: I64, key: str, title: str) -> Table:
    classes = given.task.classes
    counts = np.bincount(given.labels * len(classes) + answers, minlength=len(classes) ** 2)
    square = counts.reshape(len(classes), len(classes))
    rows = []
    for name, row in zip(classes, square.tolist(), strict=True):
        total = max(1, sum(row))
        rows.append((words(name), *(_count(value, total) for value in row)))
    columns = (
        Column("true", "True class", numeric=False),
        *(Column(f"answered {name}", f"as {name}") for name in classes),
    )
    caption = (
        f"Task {given.task.name}, test images, {given.engine}: a row is what an image shows, a "
        "column what was answered (the most probable class)."
    )
    return Table(key, title, caption, columns, tuple(rows))


def _count(value: int, total: int) -> Cell:
    return Cell(f"{value:,}", value, f"{100 * value / total:.0f} %", shade=value / total)


def _findings(given: TaskCurves, answers: I64, key: str, title: str) -> Table:
    columns = (
        Column("finding", "Finding", numeric=False),
        Column("found", "Found", hint="there, and said to be"),
        Column("missed", "Missed", hint="there, and not said to be"),
        Column("false_alarms", "False alarms", hint="not there, and said to be"),
        Column("cleared", "Cleared", hint="not there, and not said to be"),
    )
    rows = []
    for index, name in enumerate(given.task.classes):
        truth, said = given.labels[:, index] == 1, answers[:, index] == 1
        four = (truth & said, truth & ~said, ~truth & said, ~truth & ~said)
        rows.append((words(name), *(number(int(part.sum())) for part in four)))
    caption = f"Task {given.task.name}, test images, {given.engine}, from a probability of 0.5 on."
    return Table(key, title, caption, columns, tuple(rows))


def roc(given: TaskCurves, key: str) -> Figure:
    """Sensitivity against false alarms; of several classes the mean of one against the rest."""
    many = given.task.kind == "multilabel" or len(given.task.classes) > 2
    found = {model: _roc(given.labels, probs) for model, probs in given.models.items()}
    look = _square("False alarms (1 − specificity)", "Sensitivity")
    traces = [_diagonal()]
    for model, (across, up) in found.items():
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": model,
                "x": np.round(across, 4).tolist(),
                "y": np.round(up, 4).tolist(),
                "line": {"color": _COLOURS[model], "width": 2},
                "hovertemplate": f"{escape(model)}<br>sensitivity %{{y:.3f}} at "
                "%{x:.3f} false alarms<extra></extra>",
            }
        )
    which = (
        "the mean over classes, each against the rest"
        if many
        else f"for {given.task.classes[1]!r} against {given.task.classes[0]!r}"
    )
    rows = tuple(
        (words(model), number(float(x)), number(float(y)))
        for model, (across, up) in found.items()
        for x, y in zip(across, up, strict=True)
    )
    columns = (
        Column("model", "Model", numeric=False),
        Column("false_alarms", "False alarms"),
        Column("sensitivity", "Sensitivity"),
    )
    title = f"ROC: {given.task.name}"
    caption = f"Test images, {given.engine}, {which}. Up and left is better."
    specs = {key: {"data": traces, "layout": look}}
    return Figure(key, title, caption, HEIGHT, specs, Table(key, title, "", columns, rows))


def _roc(labels: I64, probs: F64) -> tuple[F64, F64]:
    truth, values = one_against_rest(labels, probs)
    curves = [
        _corner_points(truth[:, k], values[:, k])
        for k in range(values.shape[1])
        if 0 < truth[:, k].sum() < len(truth)
    ]
    if len(curves) == 1:
        return curves[0]
    if not curves:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    mean = np.mean([np.interp(GRID, across, up) for across, up in curves], axis=0)
    return np.concatenate([[0.0], GRID]), np.concatenate([[0.0], mean])


def _corner_points(truth: Any, values: F64) -> tuple[F64, F64]:
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], truth[order]
    last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))
    up = np.cumsum(hits)[last] / hits.sum()
    across = np.cumsum(~hits)[last] / (~hits).sum()
    # Only the corners: what lies between two on a straight line is not kept.
    bends = np.ones(len(up), bool)
    bends[:-1] = (np.diff(across, prepend=0)[:-1] > 0) != (np.diff(across, append=1)[:-1] > 0)
    bends[:-1] |= (np.diff(up, prepend=0)[:-1] > 0) != (np.diff(up, append=1)[:-1] > 0)
    return np.concatenate([[0.0], across[bends]]), np.concatenate([[0.0], up[bends]])


def calibration(given: TaskCurves, key: str) -> Figure:
    """How often an answer is right against how sure it was, in bins of equal width."""
    look = _square("Confidence", "Right answers")
    traces, rows = [_diagonal()], []
    for model, probs in given.models.items():
        sure, right, images = _reliability(given.labels, probs)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": model,
                "x": sure,
                "y": right,
                "customdata": images,
                "marker": {"size": 7, "color": _COLOURS[model]},
                "line": {"color": _COLOURS[model], "width": 1.5},
                "hovertemplate": f"{escape(model)}<br>%{{y:.3f}} right where %{{x:.3f}} sure"
                "<br>%{customdata} answers<extra></extra>",
            }
        )
        rows += [
            (words(model), number(x), number(y), number(n))
            for x, y, n in zip(sure, right, images, strict=True)
        ]
    columns = (
        Column("model", "Model", numeric=False),
        Column("confidence", "Confidence"),
        Column("right", "Right answers"),
        Column("answers", "Answers"),
    )
    title = f"Calibration: {given.task.name}"
    caption = (
        f"Test images, {given.engine}, {BINS} bins of equal width, empty ones left out. On the "
        "dotted line an answer is as often right as it is sure; below it, it is too sure."
    )
    specs = {key: {"data": traces, "layout": look}}
    data = Table(key, title, "", columns, tuple(rows))
    return Figure(key, title, caption, HEIGHT, specs, data)


def _reliability(labels: I64, probs: F64) -> tuple[list[float], list[float], list[int]]:
    if labels.ndim == 2:  # all findings together: their probability and whether they are there
        confidence, right = probs.ravel(), labels.ravel() == 1
    else:
        confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    place = bins(confidence)
    images = np.bincount(place, minlength=BINS)
    used = images > 0
    sure = np.bincount(place, confidence, BINS)[used] / images[used]
    share = np.bincount(place, right, BINS)[used] / images[used]
    return sure.tolist(), share.tolist(), images[used].tolist()


def _square(across: str, up: str) -> dict[str, Any]:
    look = layout(HEIGHT, across)
    look["xaxis"] |= {"range": [-0.02, 1.02]}
    look["yaxis"] |= {
        "range": [-0.02, 1.02],
        "title": {"text": up, "standoff": 8, "font": {"size": 13}},
    }
    return look


def _diagonal() -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "hoverinfo": "skip",
        "showlegend": False,
        "line": {"color": "soft", "width": 1, "dash": "dot"},
    }
