"""Latency, throughput, memory and size of a department's engines, at the smallest batch."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import JOULES, OF_CALLS, PEAK, SIZE, Measured
from lorkd_deploy.reporting.cells import FEW_CALLS, column, engine_cell, figure_cell
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Column, Table

INTRO = (
    "Times are in ms, over every call of every round, none trimmed; the 95 % interval is in small "
    "print. Memory is resident memory over an empty process."
)


def latency(sources: Sources, department: str) -> Table | None:
    """A department's engines and the teacher's at the smallest batch; None where none was
    measured."""
    engines = sources.engines(department)
    if not engines:
        return None
    energy = (JOULES,) if any(engine.joules for engine in engines) else ()
    columns = (
        Column("engine", "Engine", numeric=False),
        *map(column, (*OF_CALLS, PEAK)),
        Column("size_bytes", SIZE.title, hint=SIZE.hint),
        *map(column, energy),
    )
    rows = []
    for engine in engines:
        of = Measured(engine, engine.latency)
        calls = [figure_cell(figure, figure.read(of), absent=FEW_CALLS) for figure in OF_CALLS]
        rest = [figure_cell(figure, figure.read(of)) for figure in (PEAK, SIZE, *energy)]
        rows.append((engine_cell(engine), *calls, *rest))
    return Table("engines", "Latency, memory and size", "", columns, tuple(rows))
