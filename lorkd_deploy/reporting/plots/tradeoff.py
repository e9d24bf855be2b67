"""Accuracy against latency and against memory: a line for each task, from teacher to expert."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import ACCURACY, AUC, P50, PEAK, SIZE, AnswersFigure, Measured
from lorkd_deploy.profiling.figures import Figure as Measure
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import in_unit, label, number, significant
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.plots import svg
from lorkd_deploy.reporting.plots.figure import Figure, Key
from lorkd_deploy.reporting.table import Cell, Column, Table

COLOURS = 8
HEIGHT = 300  # px
MARKS = ("circle", "square", "triangle", "cross", "pentagon", "hexagon")
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
        looks = _looks(sources, pairs)
        drawings = {q.key: _drawn(pairs, cost, q, looks) for q in shown}
        data, legend = _data(pairs, cost), _legend(looks)
        figures.append(
            Figure(cost.key, cost.title, cost.caption, drawings, data, legend, "measure")
        )
    return figures


@dataclass(frozen=True)
class Looks:
    """Each department's colour and each engine's symbol."""

    colours: dict[str, str]
    symbols: dict[str, str]


def _looks(sources: Sources, pairs: list[Pair]) -> Looks:
    shown = {pair.task.department for pair in pairs}
    places = enumerate(sources.manifest.departments)
    targets = sorted({pair.target for pair in pairs})
    return Looks(
        {name: f"s{k % COLOURS}" for k, name in places if name in shown},
        {target: MARKS[k % len(MARKS)] for k, target in enumerate(targets)},
    )


def _legend(looks: Looks) -> tuple[Key, ...]:
    entries = [Key(name, colour, "circle") for name, colour in looks.colours.items()]
    if len(looks.symbols) > 1:
        entries += [Key(target, "soft", symbol) for target, symbol in looks.symbols.items()]
    return (*entries, Key("foundation model", "soft", "diamond", hollow=True))


def _drawn(pairs: list[Pair], cost: Cost, quality: AnswersFigure, looks: Looks) -> str:
    """One plot: for each engine of an expert a dotted line from its teacher's mark to its own."""
    lines = [(pair, marks) for pair in pairs if (marks := _marks(pair, cost, quality))]
    all_marks = [mark for _, marks in lines for mark in marks]
    up = f"{quality.title}, {quality.unit}" if quality.unit else quality.title
    x = svg.scale([mark.x for mark in all_marks], cost.axis, log=True)
    ends = [quality.scale * v for mark in all_marks for v in (mark.y.low, mark.y.high)]
    y = svg.scale(ends, up)
    parts = [svg.beside(y, HEIGHT), svg.below(x, HEIGHT)]
    for pair, marks in lines:
        places = [(x.at(m.x), HEIGHT * (1 - y.at(quality.scale * m.y.value))) for m in marks]
        strokes = [svg.line(places[0], places[-1], "dotted")]
        for mark, (across, height) in zip(marks, places, strict=True):
            low, high = (HEIGHT * (1 - y.at(quality.scale * v)) for v in (mark.y.low, mark.y.high))
            strokes.append(svg.line((across, low), (across, high), "stroke"))
            teacher = mark.engine.kind == "teacher"
            symbol = "diamond" if teacher else looks.symbols[pair.target]
            said = _said(pair, mark, cost, quality)
            strokes.append(svg.mark(symbol, across, height, "ring" if teacher else "dot", said))
        parts.append(svg.coloured(looks.colours[pair.task.department], *strokes))
    return svg.drawing(HEIGHT, *parts)


def _marks(pair: Pair, cost: Cost, quality: AnswersFigure) -> list[Mark]:
    """The teacher's and the expert's, as far as both values are known."""
    marks = []
    for engine in (pair.teacher, pair.expert):
        x, y = cost.of(engine), quality.of(pair.score(engine))
        if engine and x is not None and x > 0 and y:
            marks.append(Mark(engine, x, y))
    return marks


def _said(pair: Pair, mark: Mark, cost: Cost, quality: AnswersFigure) -> str:
    """What a mark's title says."""
    engine = mark.engine
    who = "foundation model" if engine.kind == "teacher" else "expert"
    low, high = (f"{quality.scale * v:.{quality.decimals}f}" for v in (mark.y.low, mark.y.high))
    return (
        f"{pair.task.name}, {who}, {engine.target} {engine.precision}: "
        f"{quality.title} {in_unit(quality, mark.y.value)} ({low} to {high}), "
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
