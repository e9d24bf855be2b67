"""Accuracy against latency and against memory: a line for each task, from teacher to expert."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import ACCURACY, AUC, P50, PEAK, SIZE, AnswersFigure, Measured
from lorkd_deploy.profiling.figures import Figure as Measure
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import in_unit, label, number, significant
from lorkd_deploy.reporting.plots.figure import Figure, layout
from lorkd_deploy.reporting.sources import Pair, Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

COLOURS = 8
SYMBOLS = ("circle", "square", "triangle-up", "star", "pentagon", "hexagon")
QUALITIES = (ACCURACY, AUC)
MEASURES = {quality.key: quality.title for quality in QUALITIES}


@dataclass(frozen=True)
class Cost:
    """What accuracy is laid against: the horizontal axis of a trade-off."""

    key: str
    title: str
    axis: str
    measure: Measure
    caption: str

    def of(self, engine: EngineProfile | None) -> float | None:
        """The engine's latency in ms, or its peak memory in MiB."""
        return self.measure.value(Measured(engine, engine.latency)) if engine else None


COSTS = (
    Cost(
        "latency",
        "Accuracy against latency",
        "Median latency, ms",
        P50,
        "Up is better, left is faster; latency is the median, on a logarithmic scale.",
    ),
    Cost(
        "memory",
        "Accuracy against memory",
        "Peak memory, MiB",
        PEAK,
        "Up is better, left is smaller; memory is counted over an empty process, on a "
        "logarithmic scale.",
    ),
)


@dataclass(frozen=True)
class Mark:
    """One engine in a plot: `x` its cost, `y` its accuracy or AUC."""

    engine: EngineProfile
    x: float
    y: Interval


def tradeoffs(sources: Sources) -> list[Figure]:
    """Accuracy and AUC against latency and against memory; none where either is unknown."""
    figures = []
    for cost in COSTS:
        pairs = [p for p in sources.pairs() if p.score(p.expert) and cost.of(p.expert) is not None]
        shown = [q for q in QUALITIES if any(q.of(p.score(p.expert)) for p in pairs)]
        if not shown:
            continue
        specs = {f"{cost.key}-{q.key}": _spec(sources, pairs, cost, q) for q in shown}
        data = _data(pairs, cost)
        figures.append(Figure(cost.key, cost.title, cost.caption, 380, specs, data, "measure"))
    return figures


def _spec(
    sources: Sources, pairs: list[Pair], cost: Cost, quality: AnswersFigure
) -> dict[str, Any]:
    """plotly's traces and layout of one plot."""
    departments = list(sources.manifest.departments)
    targets = sorted({pair.target for pair in pairs})
    symbols = {target: SYMBOLS[k % len(SYMBOLS)] for k, target in enumerate(targets)}
    traces = []
    named = set()
    for pair in pairs:
        marks = _marks(pair, cost, quality)
        if not marks:
            continue
        department = pair.task.department
        colour = f"s{departments.index(department) % COLOURS}"
        line = _line(marks, quality.scale, colour, symbols[pair.target])
        line["text"] = [_hover(pair, mark, cost, quality) for mark in marks]
        traces.append({"name": escape(department, quote=False), "legendgroup": department} | line)
        if department not in named:
            traces.append(_legend(department, colour, "circle"))
        named.add(department)
    if len(targets) > 1:
        traces += [_legend(target, "soft", symbol) for target, symbol in symbols.items()]
    up = f"{quality.title}, {quality.unit}" if quality.unit else quality.title
    look = layout(380, cost.axis, up, log=True)
    look["hovermode"] = "closest"
    return {"data": traces, "layout": look}


def _marks(pair: Pair, cost: Cost, quality: AnswersFigure) -> list[Mark]:
    """The teacher's and the expert's, as far as both values are known."""
    marks = []
    for engine in (pair.teacher, pair.expert):
        x, y = cost.of(engine), quality.of(pair.score(engine))
        if engine and x is not None and y:
            marks.append(Mark(engine, x, y))
    return marks


def _line(marks: list[Mark], scale: float, colour: str, symbol: str) -> dict[str, Any]:
    """From the teacher's mark to the expert's."""
    teachers = [mark.engine.kind == "teacher" for mark in marks]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "showlegend": False,
        "x": [mark.x for mark in marks],
        "y": [scale * mark.y.value for mark in marks],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [scale * (mark.y.high - mark.y.value) for mark in marks],
            "arrayminus": [scale * (mark.y.value - mark.y.low) for mark in marks],
            "thickness": 1,
            "width": 0,
            "color": colour,
        },
        "line": {"color": colour, "width": 1.2, "dash": "dot"},
        "marker": {
            "size": 11,
            "color": ["paper" if teacher else colour for teacher in teachers],
            "symbol": ["diamond" if teacher else symbol for teacher in teachers],
            "line": {"color": colour, "width": 2},
        },
        "hovertemplate": "%{text}<extra></extra>",
    }


def _legend(name: str, colour: str, symbol: str) -> dict[str, Any]:
    """A mark for the legend alone, where the first mark of a line would be the teacher's."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "name": escape(name, quote=False),
        "legendgroup": name,
        "marker": {"size": 11, "color": colour, "symbol": symbol},
    }


def _hover(pair: Pair, mark: Mark, cost: Cost, quality: AnswersFigure) -> str:
    """What stands beside a mark that is pointed at."""
    engine = mark.engine
    who = "Foundation model" if engine.kind == "teacher" else "Expert"
    low, high = (f"{quality.scale * v:.{quality.decimals}f}" for v in (mark.y.low, mark.y.high))
    return (
        f"<b>{escape(pair.task.name, quote=False)}</b> · {who} · {escape(engine.target)} "
        f"{escape(engine.precision)}<br>"
        f"{quality.title} {in_unit(quality, mark.y.value)} ({low} to {high})<br>"
        f"{significant(mark.x)} {cost.measure.unit}, engine {in_unit(SIZE, engine.bytes)}"
    )


def _data(pairs: list[Pair], cost: Cost) -> Table:
    columns = [Column(k, k, numeric=False) for k in ("department", "task", "model", "engine")]
    columns.append(Column(cost.measure.key, cost.axis))
    for quality in QUALITIES:
        columns += [Column(f"{quality.key}{end}", quality.key) for end in ("", "_low", "_high")]
    rows = [
        _row(pair, engine, cost)
        for pair in pairs
        for engine in (pair.teacher, pair.expert)
        if engine
    ]
    return Table(cost.key, cost.title, cost.caption, tuple(columns), tuple(rows))


def _row(pair: Pair, engine: EngineProfile, cost: Cost) -> tuple[Cell, ...]:
    cells = [
        label(pair.task.department),
        label(pair.task.name),
        label(engine.kind),
        label(engine.engine),
        number(cost.of(engine)),
    ]
    for quality in QUALITIES:
        value = quality.of(pair.score(engine))
        ends = (value.value, value.low, value.high) if value else (None, None, None)
        cells += [number(end) for end in ends]
    return tuple(cells)
