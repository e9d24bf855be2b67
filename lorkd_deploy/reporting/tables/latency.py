"""Latency, throughput, memory and size of engines: at the smallest batch, and at every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorkd_deploy.profiling.figures import (
    JOULES,
    OF_CALLS,
    P50,
    P99,
    PEAK,
    RATIO,
    SIZE,
    THROUGHPUT,
    Measured,
)
from lorkd_deploy.profiling.profile import BatchRatio, Comparison, EngineProfile
from lorkd_deploy.profiling.timing import Timing
from lorkd_deploy.reporting.cells import (
    FEW_CALLS,
    UNMEASURED,
    between,
    column,
    engine_cell,
    figure_cell,
    label,
    number,
    significant,
)
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

INTRO = (
    "Times are in ms, over every call of every round, none trimmed; the 95 % interval is in small "
    "print. Memory is resident memory over an empty process."
)
_OF_A_BATCH = (P50, P99, THROUGHPUT)
_HINTS = {"ms": "ms per batch"}  # by unit
_PEAK = "over an empty process, smaller batches having run before; median over rounds"


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


def batches(sources: Sources, department: str) -> Table | None:
    """Each batch size of each engine; None where only one was measured."""
    listed = sources.engines(department)
    if max((len(engine.timings) for engine in listed), default=0) < 2:
        return None
    known = any(timing.peak_mib is not None for engine in listed for timing in engine.timings)
    columns: tuple[Column, ...] = (
        Column("engine", "Engine", numeric=False),
        Column("batch", "Batch"),
        *(replace(column(f), hint=_HINTS.get(f.unit, "")) for f in _OF_A_BATCH),
        *([replace(column(PEAK), hint=_PEAK)] if known else []),
        Column("speed_up", RATIO.title, hint=RATIO.hint),
        Column("verdict", "Verdict", numeric=False),
    )
    pairs = [pair.comparison for pair in sources.pairs(department) if pair.comparison]
    ratios = {(pair.engine, entry.batch): entry for pair in pairs for entry in pair.latency}
    rows = []
    for engine in listed:
        for timing in engine.timings:
            ratio = ratios.get((engine.engine, timing.batch))
            peak = (figure_cell(PEAK, timing.peak_mib),) if known else ()
            rows.append((*_batch_row(engine, timing), *peak, *_verdict(engine, ratio)))
    return Table("batches", "Throughput by batch size", _at_best(pairs), columns, tuple(rows))


def _at_best(pairs: Sequence[Comparison]) -> str:
    """What each expert gains at its best batch; nothing where no best batch was searched for."""
    gains = [
        f"{pair.engine} {significant(pair.throughput.value)} × ({between(pair.throughput)})"
        for pair in pairs
        if pair.throughput
    ]
    if not gains:
        return ""
    return (
        "Images per second over the foundation model's, each at its own best batch: "
        f"{', '.join(gains)}."
    )


def _batch_row(engine: EngineProfile, timing: Timing) -> tuple[Cell, ...]:
    of = Measured(engine, timing)
    return (
        engine_cell(engine),
        number(timing.batch, note="its best" if timing.batch == engine.best_batch else ""),
        *(figure_cell(figure, figure.read(of), absent=FEW_CALLS) for figure in _OF_A_BATCH),
    )


def _verdict(engine: EngineProfile, ratio: BatchRatio | None) -> tuple[Cell, Cell]:
    if ratio:
        return figure_cell(RATIO, ratio.ratio), label(ratio.verdict)
    if engine.kind == "teacher":
        return Cell("1", 1.0, "the reference", "quiet"), Cell("–", "", tone="quiet")
    return number(None), Cell(UNMEASURED, tone="quiet")
