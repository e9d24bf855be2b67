"""A study's two plots: every seed of every method, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.evidence.analysis.comparison import Comparison
from lorkd_deploy.evidence.analysis.statistics import Estimate
from lorkd_deploy.evidence.pages.tables import others
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.reporting.cells import label, number
from lorkd_deploy.reporting.plots import svg
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Cell, Column, Table

_ROW = 40  # px per method


def dots(
    comparison: Comparison,
    names: Sequence[str],
    seeds: Sequence[int],
    metric: str,
    title: str,
    *,
    key: str = "dots",
    data_key: str = "seeds",
) -> Figure:
    """One dot per seed and method, means over all tasks; a stroke is the mean over the seeds."""
    rows, drawn = [], []
    found = {name: comparison.figure(name, None, metric) for name in names}
    axis = svg.scale(
        (value for of in found.values() for value in of.seeds), f"Mean {title} over all tasks"
    )
    for place, name in enumerate(names):
        of = found[name]
        marks = [svg.mark("circle", axis.at(v), 0, "dot pale", f"{v:.4f}") for v in of.seeds]
        mean = axis.at(of.estimate.value)
        drawn.append((name, f"s{place % 8}", [*marks, svg.line((mean, -9), (mean, 9), "ink")]))
        rows += [
            (label(name), number(seed), number(value, 4))
            for seed, value in zip(seeds, of.seeds, strict=True)
        ]
    columns = (
        Column("method", "Method", numeric=False),
        Column("seed", "Seed"),
        Column(metric, title),
    )
    shown = f"{title} of every seed"
    caption = "A dot is a training, the stroke their mean."
    data = Table(data_key, shown, "", columns, tuple(rows))
    return Figure(key, shown, caption, {"": _rows(drawn, axis)}, data)


def forest(result: StudyResult, metric: str, title: str) -> Figure:
    """The differences over all tasks, with the interval that decides; its data has every task."""
    seconds = others(result)
    found = {s: result.comparison.difference(s, None, metric) for s in seconds}
    bounds = {s: of.estimate.interval or of.estimate.bootstrap for s, of in found.items()}
    ends = [value for of in bounds.values() for value in (of.low, of.high)]
    axis = svg.scale([0.0, *ends], f"{title} of {result.first} minus another's, over all tasks")
    drawn = []
    for second, of in found.items():
        own = bounds[second]
        tone = {"better": "s2", "worse": "s1"}.get(of.verdict, "soft")
        said = f"{own.value:+.4f}, {own.low:+.4f} to {own.high:+.4f}"
        whisker = [
            svg.line((axis.at(own.low), 0), (axis.at(own.high), 0), "stroke thick"),
            svg.mark("circle", axis.at(own.value), 0, "dot", said),
        ]
        drawn.append((second, tone, whisker))
    zero = svg.line((axis.at(0), 0), (axis.at(0), _ROW * len(seconds)), "axis")
    name = f"Differences in {title}"
    caption = "Right of zero is better; coloured where a difference is shown."
    data = _differences(result, metric, name)
    return Figure("forest", name, caption, {"": _rows(drawn, axis, zero)}, data)


def _differences(result: StudyResult, metric: str, title: str) -> Table:
    rows = []
    for found in result.comparison.differences:
        if found.metric != metric:
            continue
        bounds = found.estimate.interval or found.estimate.bootstrap
        rows.append(
            (
                label(found.second),
                label(found.task or "all tasks"),
                number(found.estimate.value),
                number(bounds.low),
                number(bounds.high),
                *_both(found.estimate),
                number(found.p),
                label(found.verdict),
            )
        )
    columns = (
        Column("against", "Against", numeric=False),
        Column("task", "Task", numeric=False),
        Column("difference", "Difference"),
        Column("low", "From"),
        Column("high", "To"),
        Column("bootstrap", "Bootstrap over images and seeds", numeric=False),
        Column("t", "t over seeds", numeric=False),
        Column("p", "p"),
        Column("verdict", "In words", numeric=False),
    )
    return Table("all-differences", f"{title}, task by task", "", columns, tuple(rows))


def _both(estimate: Estimate) -> tuple[Cell, Cell]:
    known = (estimate.bootstrap, estimate.t)
    low, high = (label(f"{b.low:.4f} to {b.high:.4f}" if b else "one seed") for b in known)
    return low, high


def _rows(drawn: Sequence[tuple[str, str, list[str]]], axis: svg.Scale, under: str = "") -> str:
    """A row for each name, its marks in its colour below it."""
    height = _ROW * len(drawn)
    parts = [svg.below(axis, height), under]
    for place, (name, colour, marks) in enumerate(drawn):
        shift = f"translate(0 {_ROW * place + 26})"
        parts.append(svg.text(name, "-40", _ROW * place + 13, class_="name"))
        parts.append(svg.tag("g", svg.coloured(colour, *marks), transform=shift))
    return svg.drawing(height, *parts)
