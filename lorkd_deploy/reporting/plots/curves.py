"""What lies behind a task's figures: ROC and calibration curves, from the kept answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lorkd_deploy.arrays import F64, I64
from lorkd_deploy.metrics.decisions import BINS, bins
from lorkd_deploy.metrics.score import one_against_rest
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION, label, number
from lorkd_deploy.reporting.facts.answers import Answers
from lorkd_deploy.reporting.plots import svg
from lorkd_deploy.reporting.plots.figure import Figure, Key
from lorkd_deploy.reporting.table import Column, Table

HEIGHT = 260  # px
GRID = np.linspace(0, 1, 101)  # false-alarm rates at which curves of several classes are averaged
_FALSE_ALARMS = "False alarms (1 − specificity)"
_COLOURS = {FOUNDATION: "teacher", EXPERT: "s0"}


def roc(answers: Answers) -> Figure:
    """Sensitivity against false alarms; of several classes the mean of one against the rest."""
    classes = answers.task.classes
    curves = {model: _roc(answers.labels, probs) for model, probs in answers.models.items()}
    drawn = [
        svg.coloured(
            _COLOURS[model],
            svg.curve(list(zip(across, up, strict=True)), HEIGHT, "stroke thick", model),
        )
        for model, (across, up) in curves.items()
    ]
    rows = tuple(
        (label(model), number(float(x)), number(float(y)))
        for model, (across, up) in curves.items()
        for x, y in zip(across, up, strict=True)
    )
    columns = (
        Column("model", "Model", numeric=False),
        Column("false_alarms", "False alarms"),
        Column("sensitivity", "Sensitivity"),
    )
    which = (
        "the mean over classes, each against the rest"
        if answers.task.kind == "multilabel" or len(classes) > 2
        else f"for {classes[1]!r} against {classes[0]!r}"
    )
    title = f"ROC: {answers.task.name}"
    caption = f"Test images, {answers.engine}, {which}. Up and left is better."
    data = Table("roc", title, "", columns, rows)
    drawings = {"": _square(_FALSE_ALARMS, "Sensitivity", drawn)}
    return Figure("roc", title, caption, drawings, data, _legend(curves))


def _roc(labels: I64, probs: F64) -> tuple[F64, F64]:
    """False-alarm rates and sensitivities, each from 0 to 1."""
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


def calibration(answers: Answers) -> Figure:
    """How often an answer is right against how sure it was, in bins of equal width."""
    drawn, rows = [], []
    for model, probs in answers.models.items():
        sure, right, images = _reliability(answers.labels, probs)
        drawn.append(svg.coloured(_COLOURS[model], *_bins(model, sure, right, images)))
        rows += [
            (label(model), number(x), number(y), number(n))
            for x, y, n in zip(sure, right, images, strict=True)
        ]
    columns = (
        Column("model", "Model", numeric=False),
        Column("confidence", "Confidence"),
        Column("right", "Right answers"),
        Column("answers", "Answers"),
    )
    title = f"Calibration: {answers.task.name}"
    caption = (
        f"Test images, {answers.engine}, {BINS} bins of equal width, empty ones left out. On the "
        "dotted line an answer is right as often as it is sure; below it, it is too sure."
    )
    data = Table("calibration", title, "", columns, tuple(rows))
    drawings = {"": _square("Confidence", "Right answers", drawn)}
    return Figure("calibration", title, caption, drawings, data, _legend(answers.models))


def _bins(model: str, sure: list[float], right: list[float], images: list[int]) -> Iterable[str]:
    """A line through the bins, a mark at each, and how many answers it holds below or above."""
    yield svg.curve(list(zip(sure, right, strict=True)), HEIGHT, "stroke", model)
    for x, y, n in zip(sure, right, images, strict=True):
        height = HEIGHT * (1 - y)
        said = f"{model}: {y:.3f} right where {x:.3f} sure, {n} {'answer' if n == 1 else 'answers'}"
        yield svg.mark("circle", x, height, "dot", said)


def _reliability(labels: I64, probs: F64) -> tuple[list[float], list[float], list[int]]:
    """For each bin that isn't empty: mean confidence, share of right answers, and their number."""
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


def _square(across: str, up: str, drawn: list[str]) -> str:
    """A plot from 0 to 1 both ways, with its diagonal."""
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    axes = (
        svg.below(svg.Scale(0, 1, ticks, across), HEIGHT),
        svg.beside(svg.Scale(0, 1, ticks, up), HEIGHT),
    )
    diagonal = svg.coloured("soft", svg.line((0, HEIGHT), (1, 0), "dotted"))
    return svg.drawing(HEIGHT, *axes, diagonal, *drawn)


def _legend(models: Iterable[str]) -> tuple[Key, ...]:
    return tuple(Key(model, _COLOURS[model]) for model in models)
