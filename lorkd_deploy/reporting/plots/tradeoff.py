"""Accuracy against latency and against memory: a line for each task, from teacher to expert."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from html import escape
from typing import Any

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import MiB, label, number, significant
from lorkd_deploy.reporting.plots.figure import Figure, layout
from lorkd_deploy.reporting.sources import Pair, Sources
from lorkd_deploy.reporting.table import Column, Table

COLOURS = 8
SYMBOLS = ("circle", "square", "triangle-up", "star", "pentagon", "hexagon")
MEASURES = {"accuracy": "Accuracy", "auc": "AUC"}


@dataclass(frozen=True)
class Cost:
    """What accuracy is laid against: the horizontal axis of a trade-off."""

    key: str
    title: str
    axis: str
    unit: str
    caption: str

    def of(self, engine: EngineProfile | None) -> float | None:
        """The engine's latency in ms, or its peak memory in MiB."""
        if engine is None:
            return None
        if self.key == "latency":
            return engine.latency.p50.value
        return engine.memory.peak.median if engine.memory.peak else None


COSTS = (
    Cost(
        "latency",
        "Accuracy against latency",
        "Median latency, ms",
        "ms",
        "Up is better, left is faster; latency is the median, on a logarithmic scale.",
    ),
    Cost(
        "memory",
        "Accuracy against memory",
        "Peak memory, MiB",
        "MiB",
        "Up is better, left is smaller; memory is counted over an empty process, on a "
        "logarithmic scale.",
    ),
)


def tradeoffs(sources: Sources) -> list[Figure]:
    """Accuracy and AUC against latency and against memory; none where either is unknown."""
    found = []
    for cost in COSTS:
        pairs = [p for p in sources.pairs() if p.score(p.expert) and cost.of(p.expert) is not None]
        shown = [m for m in MEASURES if any(_measure(p, p.expert, m) for p in pairs)]
        if not shown:
            continue
        specs = {f"{cost.key}-{m}": _tradeoff(sources, pairs, cost, m) for m in shown}
        data = _tradeoff_data(pairs, cost)
        found.append(Figure(cost.key, cost.title, cost.caption, 380, specs, data, "measure"))
    return found


def _measure(pair: Pair, engine: EngineProfile | None, measure: str) -> Interval | None:
    score = pair.score(engine)
    found: Interval | None = getattr(score, measure) if score else None
    return found


def _tradeoff(sources: Sources, pairs: list[Pair], cost: Cost, measure: str) -> dict[str, Any]:
    departments = list(sources.manifest.departments)
    targets = sorted({pair.target for pair in pairs})
    traces = []
    named = set()
    for pair in pairs:
        points = [
            (engine, cost.of(engine), _measure(pair, engine, measure))
            for engine in (pair.teacher, pair.expert)
        ]
        known = [(e, x, y) for e, x, y in points if e and x is not None and y]
        if not known:
            continue
        department = pair.task.department
        colour = f"s{departments.index(department) % COLOURS}"
        symbol = SYMBOLS[targets.index(pair.target) % len(SYMBOLS)]
        scale = 100 if measure == "accuracy" else 1
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(department, quote=False),
                "legendgroup": department,
                "showlegend": False,
                "x": [x for _, x, _ in known],
                "y": [scale * y.value for _, _, y in known],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [scale * (y.high - y.value) for _, _, y in known],
                    "arrayminus": [scale * (y.value - y.low) for _, _, y in known],
                    "thickness": 1,
                    "width": 0,
                    "color": colour,
                },
                "line": {"color": colour, "width": 1.2, "dash": "dot"},
                "marker": {
                    "size": 11,
                    "color": ["paper" if e.kind == "teacher" else colour for e, _, _ in known],
                    "symbol": ["diamond" if e.kind == "teacher" else symbol for e, _, _ in known],
                    "line": {"color": colour, "width": 2},
                },
                "text": [_hover(pair, e, cost, measure) for e, _, _ in known],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        if department not in named:
            traces.append(_legend(department, colour, "circle"))
        named.add(department)
    if len(targets) > 1:
        for target, symbol in zip(targets, itertools.cycle(SYMBOLS), strict=False):
            traces.append(_legend(target, "soft", symbol))
    unit = "Accuracy, %" if measure == "accuracy" else "AUC"
    look = layout(380, cost.axis, log=True)
    look["yaxis"] |= {"title": {"text": unit, "standoff": 8, "font": {"size": 13}}}
    look["hovermode"] = "closest"
    return {"data": traces, "layout": look}


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


def _hover(pair: Pair, engine: EngineProfile, cost: Cost, measure: str) -> str:
    """What stands beside a mark that is pointed at."""
    x, y = cost.of(engine), _measure(pair, engine, measure)
    assert x is not None and y is not None  # only such marks are drawn
    scale, form, unit = (100, ".1f", " %") if measure == "accuracy" else (1, ".3f", "")
    who = "Foundation model" if engine.kind == "teacher" else "Expert"
    name = escape(pair.task.name, quote=False)
    return (
        f"<b>{name}</b> · {who} · {escape(engine.target)} {escape(engine.precision)}<br>"
        f"{MEASURES[measure]} {y.value * scale:{form}}{unit} "
        f"({y.low * scale:{form}} to {y.high * scale:{form}})<br>"
        f"{significant(x)} {cost.unit}, engine {significant(engine.bytes / MiB)} MiB"
    )


def _tradeoff_data(pairs: list[Pair], cost: Cost) -> Table:
    columns = [Column(k, k, numeric=False) for k in ("department", "task", "model", "engine")]
    columns.append(Column("p50_ms" if cost.key == "latency" else "peak_mib", cost.axis))
    for measure in MEASURES:
        columns += [Column(f"{measure}{end}", measure) for end in ("", "_low", "_high")]
    rows = []
    for pair in pairs:
        for engine in (pair.teacher, pair.expert):
            if engine is None:
                continue
            cells = [
                label(pair.task.department),
                label(pair.task.name),
                label(engine.kind),
                label(engine.engine),
                number(cost.of(engine)),
            ]
            for measure in MEASURES:
                value = _measure(pair, engine, measure)
                ends = (value.value, value.low, value.high) if value else (None, None, None)
                cells += [number(end) for end in ends]
            rows.append(tuple(cells))
    return Table(cost.key, cost.title, cost.caption, tuple(columns), tuple(rows))
