"""A study's two plots: every seed of every method, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from lorkd_deploy.evidence.comparison import Comparison
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.evidence.statistics import Estimate
from lorkd_deploy.evidence.tables import others
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.reporting.cells import label, number
from lorkd_deploy.reporting.plots.figure import Figure, layout
from lorkd_deploy.reporting.table import Cell, Column, Table

_ROW, _EDGE = 34, 90  # px per method, and for the axis


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
    traces: list[dict[str, Any]] = []
    rows = []
    for place, name in enumerate(names):
        found = comparison.figure(name, None, metric)
        traces.append(_marks(found.seeds, name, f"s{place % 8}"))
        traces.append(_mean(found.estimate.value, name))
        rows += [
            (label(name), number(seed), number(value, 4))
            for seed, value in zip(seeds, found.seeds, strict=True)
        ]
    columns = (
        Column("method", "Method", numeric=False),
        Column("seed", "Seed"),
        Column(metric, title),
    )
    shown = f"{title} of every seed"
    spec = _spec(traces, f"Mean {title} over all tasks", names)
    caption = "A dot is a training, the stroke their mean."
    data = Table(data_key, shown, "", columns, tuple(rows))
    return Figure(key, shown, caption, spec["layout"]["height"], {key: spec}, data)


def forest(result: StudyResult, metric: str, title: str) -> Figure:
    """The differences over all tasks, with the interval that decides; its data has every task."""
    seconds = others(result)
    traces = []
    for second in seconds:
        found = result.comparison.difference(second, None, metric)
        bounds = found.estimate.interval or found.estimate.bootstrap
        tone = {"better": "s2", "worse": "s1"}.get(found.verdict, "soft")
        traces.append(_whisker(bounds, second, tone))
    spec = _spec(traces, f"{title} of {result.first} minus another's, over all tasks", seconds)
    line = {"color": "soft", "width": 1}
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": line}
    spec["layout"]["shapes"] = [zero]
    name = f"Differences in {title}"
    caption = "Right of zero is better; coloured where a difference is shown."
    data = _differences(result, metric, name)
    return Figure("forest", name, caption, spec["layout"]["height"], {"forest": spec}, data)


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


def _marks(values: tuple[float, ...], name: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(values),
        "y": [escape(name, quote=False)] * len(values),
        "marker": {"color": colour, "size": 9, "opacity": 0.75},
        "hovertemplate": "%{x:.4f}<extra></extra>",
        "showlegend": False,
    }


def _mean(value: float, name: str) -> dict[str, Any]:
    mark = {"color": "ink", "size": 18, "symbol": "line-ns-open", "line": {"width": 2}}
    return _marks((value,), name, "ink") | {"marker": mark, "hoverinfo": "skip"}


def _whisker(bounds: Interval, name: str, colour: str) -> dict[str, Any]:
    return _marks((bounds.value,), name, colour) | {
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [bounds.high - bounds.value],
            "arrayminus": [bounds.value - bounds.low],
            "color": colour,
            "thickness": 2,
        },
    }


def _spec(traces: list[dict[str, Any]], axis: str, names: Sequence[str]) -> dict[str, Any]:
    look = layout(_EDGE + _ROW * len(names), axis)
    order = [escape(name, quote=False) for name in names]
    look["yaxis"] |= {"categoryorder": "array", "categoryarray": order[::-1], "type": "category"}
    look["margin"]["l"] = 150
    return {"data": traces, "layout": look}
