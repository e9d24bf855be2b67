"""Latency round by round: what the single calls of each engine look like."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import number, significant, tail, words
from lorkd_deploy.reporting.plots.figure import Figure, layout
from lorkd_deploy.reporting.plots.rounds import Round, rounds
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table
from lorkd_deploy.reporting.tables.engines import engine_name, of_department


def distribution(sources: Sources, department: str, key: str) -> Figure | None:
    """Latency of every round of a department's engines and of the teacher's, a panel an engine."""
    listed = [(engine, rounds(sources, engine)) for engine in of_department(sources, department)]
    if not listed:
        return None
    panels = [24 + 17 * len(found) for _, found in listed]
    gap, above, below = 58, 28, 48
    room = sum(panels) + gap * (len(panels) - 1)
    height = room + above + below
    look = layout(height, "")
    del look["xaxis"], look["yaxis"]
    look["margin"] = {"l": 12, "r": 12, "t": above, "b": below}
    look["annotations"] = []
    traces: list[dict[str, Any]] = []
    top = 1.0
    for index, ((engine, found), panel) in enumerate(zip(listed, panels, strict=True)):
        bottom = top - panel / room
        end = str(index + 1) if index else ""
        name = escape(engine_name(engine), quote=False)
        label = f"<b>{name}</b> · {escape(engine.target)} {escape(engine.precision)}"
        look |= _panel(end, (max(0.0, bottom), top), found)
        look["annotations"].append(_heading(label, top))
        traces += _strokes(found, "teacher" if engine.kind == "teacher" else "s0", name, end)
        top = bottom - gap / room
    look[f"xaxis{end}"]["title"] = {
        "text": f"Latency, ms, batch {listed[0][0].latency.batch}",
        "standoff": 8,
        "font": {"size": 13},
    }
    data = _distribution_data(key, [(e, entry) for e, found in listed for entry in found])
    single = listed[0][1][0].number is not None
    what = "One line a round, each in a process of its own" if single else "All rounds together"
    caption = (
        f"{what}: the dot is the median, the thick line holds 90 % of the calls (5th to 95th "
        "percentile), the thin line every one of them. Each engine has its own scale."
    )
    specs = {key: {"data": traces, "layout": look}}
    return Figure(key, "Latency, round by round", caption, height, specs, data)


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


def _heading(label: str, top: float) -> dict[str, Any]:
    return {
        "text": label,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
    }


def _strokes(found: list[Round], colour: str, name: str, end: str) -> list[dict[str, Any]]:
    """The lines and dots of one engine's rounds, each kind of line in one trace with gaps."""
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
            "text": [_hover_of_round(name, entry) for entry in found],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]


def _hover_of_round(name: str, entry: Round) -> str:
    which = "" if entry.number is None else f" · round {entry.number}"
    beyond = "" if entry.p99 is None else f", 99 % below {significant(entry.p99)} ms"
    return (
        f"<b>{name}</b>{which}<br>median {significant(entry.p50)} ms{beyond}<br>"
        f"{entry.calls:,} calls, "
        f"{significant(entry.minimum)} to {significant(entry.maximum)} ms"
    )


def _distribution_data(key: str, listed: list[tuple[EngineProfile, Round]]) -> Table:
    keys = ("minimum", "p5", "p50", "p95", "p99", "maximum")
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("round", "Round"),
        Column("calls", "Calls"),
        *(Column(f"{k}_ms", k) for k in keys),
    )
    rows = tuple(
        (
            words(engine.engine),
            Cell(str(entry.number), entry.number),
            number(entry.calls),
            *((tail if k == "p99" else number)(getattr(entry, k)) for k in keys),
        )
        for engine, entry in listed
    )
    return Table(key, "Latency, round by round", "", columns, rows)
