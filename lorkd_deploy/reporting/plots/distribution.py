"""Latency round by round: what the single calls of each engine look like."""

from __future__ import annotations

from dataclasses import dataclass
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
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.plots import svg
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Cell, Column, Table

TITLE = "Latency, round by round"
_ROW, _ROOM, _GAP = 17, 24, 44  # px: a round, an engine's name, between two engines
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
    drawn, top = [], 0.0
    for engine, found in measured:
        panel = _ROOM + _ROW * len(found)
        drawn.append(svg.tag("g", _panel(engine, found, panel), transform=f"translate(0 {top:g})"))
        top += panel + _GAP
    single = measured[0][1][0].number is not None
    what = "One line per round, each in its own process" if single else "All rounds together"
    caption = (
        f"In ms, at batch {measured[0][0].latency.batch}. {what}: the dot is the median, the thick "
        "line holds 90 % of the calls (5th to 95th percentile), the thin line every one of them. "
        "Each engine has its own scale."
    )
    drawings = {"": svg.drawing(top - _GAP, *drawn)}
    return Figure("latency", TITLE, caption, drawings, _data(measured))


def _panel(engine: EngineProfile, found: list[Round], height: float) -> str:
    """One engine's name, its axis and its rounds."""
    ends = [value for entry in found for value in (entry.minimum, entry.maximum)]
    axis = svg.scale(ends, log=True)
    name = f"{engine_name(engine)} · {engine.target} {engine.precision}"
    parts = [svg.text(name, "-40", 10, class_="name"), svg.below(axis, height)]
    strokes = []
    for place, entry in enumerate(found):
        y = _ROOM + _ROW * (place + 0.5) - 4
        low, first, median, last, high = (
            axis.at(v) for v in (entry.minimum, entry.p5, entry.p50, entry.p95, entry.maximum)
        )
        strokes += [
            svg.line((low, y), (high, y), "stroke"),
            svg.line((first, y), (last, y), "stroke broad"),
            svg.mark("circle", median, y, "ring", _said(engine, entry)),
        ]
    colour = "teacher" if engine.kind == "teacher" else "s0"
    return "".join((*parts, svg.coloured(colour, *strokes)))


def _said(engine: EngineProfile, entry: Round) -> str:
    which = "" if entry.number is None else f", round {entry.number}"
    beyond = "" if entry.p99 is None else f", 99 % below {significant(entry.p99)} ms"
    return (
        f"{engine_name(engine)}{which}: median {significant(entry.p50)} ms{beyond}; "
        f"{entry.calls:,} calls, {significant(entry.minimum)} to {significant(entry.maximum)} ms"
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
