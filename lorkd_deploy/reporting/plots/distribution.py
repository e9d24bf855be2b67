"""Latency round by round: what the single calls of each engine look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from lorkd_deploy.profiling.figures import P50
from lorkd_deploy.profiling.profile import EngineProfile, calls_name
from lorkd_deploy.profiling.timing import LEAST_CALLS
from lorkd_deploy.reporting.cells import (
    FEW_CALLS,
    engine_name,
    figure_cell,
    label,
    number,
    significant,
)
from lorkd_deploy.reporting.plots.figure import Figure, layout, title
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

TITLE = "Latency, round by round"
_GAP, _ABOVE, _BELOW = 58, 28, 48  # px between panels, above the first and below the last
_MARKS = {"minimum": 0, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "maximum": 100}  # percentiles


@dataclass(frozen=True)
class Round:
    """One round at the smallest batch, ms per call; `number` is None for all rounds together, `p99`
    where the calls are too few for it."""

    number: int | None
    calls: int
    minimum: float
    p5: float
    p50: float
    p95: float
    p99: float | None
    maximum: float


def rounds(sources: Sources, engine: EngineProfile) -> list[Round]:
    """Every round of `engine`; a single entry for all of them where the calls aren't here."""
    timing = engine.latency
    names = [calls_name(engine.engine, timing.batch, i) for i in range(len(timing.round_p50))]
    calls = [sources.calls.get(name) for name in names]
    if any(found is None or not len(found) for found in calls):
        return [_round(None, timing.calls, [timing.percentiles[q] for q in _MARKS.values()])]
    return [
        _round(number, len(found), (np.percentile(found, [*_MARKS.values()]) / 1e6).tolist())
        for number, found in enumerate(calls, 1)
        if found is not None
    ]


def _round(number: int | None, calls: int, marks: list[float]) -> Round:
    values: dict[str, Any] = dict(zip(_MARKS, marks, strict=True))
    if calls < LEAST_CALLS["p99"]:
        values["p99"] = None
    return Round(number, calls, **values)


def distribution(sources: Sources, department: str) -> Figure | None:
    """Latency of every round of a department's engines and of the teacher's, one panel per engine;
    None where no engine was measured."""
    measured = [(engine, rounds(sources, engine)) for engine in sources.engines(department)]
    if not measured:
        return None
    panels = [24 + 17 * len(found) for _, found in measured]
    room = sum(panels) + _GAP * (len(panels) - 1)
    look = layout(room + _ABOVE + _BELOW, "")
    del look["xaxis"], look["yaxis"]
    look["margin"] = {"l": 12, "r": 12, "t": _ABOVE, "b": _BELOW}
    look["annotations"] = []
    traces: list[dict[str, Any]] = []
    top, end = 1.0, ""
    for index, ((engine, found), panel) in enumerate(zip(measured, panels, strict=True)):
        bottom = top - panel / room
        end = str(index + 1) if index else ""
        look |= _panel(end, (max(0.0, bottom), top), found)
        look["annotations"].append(_heading(engine, top))
        traces += _strokes(engine, found, end)
        top = bottom - _GAP / room
    look[f"xaxis{end}"]["title"] = title(f"Latency, ms, batch {measured[0][0].latency.batch}")
    single = measured[0][1][0].number is not None
    what = "One line per round, each in its own process" if single else "All rounds together"
    caption = (
        f"{what}: the dot is the median, the thick line holds 90 % of the calls (5th to 95th "
        "percentile), the thin line every one of them. Each engine has its own scale."
    )
    specs = {"latency": {"data": traces, "layout": look}}
    return Figure("latency", TITLE, caption, look["height"], specs, _data(measured))


def _panel(end: str, domain: tuple[float, float], found: list[Round]) -> dict[str, Any]:
    """The axes of one engine's panel; `end` is the axes' number in plotly's names."""
    base = layout(0, "", log=True)
    x, y = base["xaxis"], base["yaxis"]
    del x["dtick"]
    low = math.log10(min(entry.minimum for entry in found))
    high = math.log10(max(entry.maximum for entry in found))
    pad = 0.03 * (high - low) + 0.002
    x |= {"anchor": f"y{end}", "nticks": 7, "range": [low - pad, high + pad]}
    y |= {
        "anchor": f"x{end}",
        "domain": list(domain),
        "range": [len(found) - 0.3, -0.7],
        "visible": False,
        "fixedrange": True,
    }
    return {f"xaxis{end}": x, f"yaxis{end}": y}


def _heading(engine: EngineProfile, top: float) -> dict[str, Any]:
    name = escape(engine_name(engine), quote=False)
    return {
        "text": f"<b>{name}</b> · {escape(engine.target)} {escape(engine.precision)}",
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
    }


def _strokes(engine: EngineProfile, found: list[Round], end: str) -> list[dict[str, Any]]:
    """The lines and dots of one engine's rounds, each kind of line in one trace with gaps."""
    colour = "teacher" if engine.kind == "teacher" else "s0"
    name = escape(engine_name(engine), quote=False)
    heights = [at for at in range(len(found)) for _ in range(3)]
    common = {"type": "scatter", "showlegend": False, "xaxis": f"x{end}", "yaxis": f"y{end}"}
    line = {**common, "mode": "lines", "hoverinfo": "skip", "y": heights}
    every = [x for entry in found for x in (entry.minimum, entry.maximum, None)]
    most = [x for entry in found for x in (entry.p5, entry.p95, None)]
    return [
        {**line, "x": every, "line": {"color": colour, "width": 1}},
        {**line, "x": most, "line": {"color": colour, "width": 5}},
        {
            **common,
            "mode": "markers",
            "x": [entry.p50 for entry in found],
            "y": list(range(len(found))),
            "marker": {"size": 8, "color": "paper", "line": {"color": colour, "width": 2}},
            "text": [_hover(name, entry) for entry in found],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]


def _hover(name: str, entry: Round) -> str:
    which = "" if entry.number is None else f" · round {entry.number}"
    beyond = "" if entry.p99 is None else f", 99 % below {significant(entry.p99)} ms"
    return (
        f"<b>{name}</b>{which}<br>median {significant(entry.p50)} ms{beyond}<br>"
        f"{entry.calls:,} calls, "
        f"{significant(entry.minimum)} to {significant(entry.maximum)} ms"
    )


def _data(measured: list[tuple[EngineProfile, list[Round]]]) -> Table:
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("round", "Round"),
        Column("calls", "Calls"),
        *(Column(f"{mark}_ms", mark) for mark in _MARKS),
    )
    rows = tuple(
        (
            label(engine.engine),
            Cell(str(entry.number), entry.number),
            number(entry.calls),
            *(figure_cell(P50, getattr(entry, mark), absent=FEW_CALLS) for mark in _MARKS),
        )
        for engine, found in measured
        for entry in found
    )
    return Table("latency", TITLE, "", columns, rows)
