"""Latency, throughput, memory and size of engines: at the smallest batch, and at every batch."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.profiling.profile import BatchRatio, Comparison, EngineProfile
from lorkd_deploy.profiling.timing import Timing
from lorkd_deploy.reporting.cells import (
    UNMEASURED,
    between,
    engine_cell,
    label,
    mebibytes,
    number,
    significant,
    spread,
    tail,
)
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

INTRO = (
    "Times are in ms, over every call of every round, none trimmed; the 95 % interval is in small "
    "print. Memory is resident memory over an empty process."
)
_PEAK = "over an empty process, smaller batches having run before; median over rounds"


def latency(sources: Sources, department: str) -> Table | None:
    """A department's engines and the teacher's at the smallest batch; None where none was
    measured."""
    columns: tuple[Column, ...] = (
        Column("engine", "Engine", numeric=False),
        Column("p50_ms", "p50", hint="median, ms"),
        Column("p90_ms", "p90", hint="ms"),
        Column("p99_ms", "p99", hint="ms"),
        Column("p99_9_ms", "p99.9", hint="ms"),
        Column("mean_ms", "Mean", hint="ms"),
        Column("images_per_s", "Throughput", hint="images per second at the same batch"),
        Column("peak_mib", "Peak memory", hint="over an empty process, median over rounds"),
        Column("size_bytes", "File size"),
    )
    listed = sources.engines(department)
    if not listed:
        return None
    rows = [_row(engine) for engine in listed]
    if any(engine.joules for engine in listed):
        columns += (Column("joules", "Energy", hint="per image, over the idle machine's"),)
        rows = [
            (*row, spread(engine.joules, "J")) for row, engine in zip(rows, listed, strict=True)
        ]
    return Table("engines", "Latency, memory and size", "", columns, tuple(rows))


def _row(engine: EngineProfile) -> tuple[Cell, ...]:
    timing = engine.latency
    return (
        engine_cell(engine),
        number(timing.p50.value, note=between(timing.p50)),
        number(timing.p90),
        tail(timing.p99),
        tail(timing.p99_9),
        number(timing.mean),
        number(timing.throughput.value, unit="/s", note=between(timing.throughput)),
        spread(engine.memory.peak, "MiB"),
        mebibytes(engine.bytes),
    )


def batches(sources: Sources, department: str) -> Table | None:
    """Each batch size of each engine; None where only one was measured."""
    listed = sources.engines(department)
    if max((len(engine.timings) for engine in listed), default=0) < 2:
        return None
    known = any(timing.peak_mib is not None for engine in listed for timing in engine.timings)
    columns: tuple[Column, ...] = (
        Column("engine", "Engine", numeric=False),
        Column("batch", "Batch"),
        Column("p50_ms", "p50", hint="ms per batch"),
        Column("p99_ms", "p99", hint="ms per batch"),
        Column("images_per_s", "Throughput"),
        *([Column("peak_mib", "Peak memory", hint=_PEAK)] if known else []),
        Column("speed_up", "Speed-up", hint="foundation model's median over the expert's"),
        Column("verdict", "Verdict", numeric=False),
    )
    pairs = [pair.comparison for pair in sources.pairs(department) if pair.comparison]
    ratios = {(pair.engine, entry.batch): entry for pair in pairs for entry in pair.latency}
    rows = []
    for engine in listed:
        for timing in engine.timings:
            ratio = ratios.get((engine.engine, timing.batch))
            peak = (number(timing.peak_mib, unit="MiB"),) if known else ()
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
    return (
        engine_cell(engine),
        number(timing.batch, note="its best" if timing.batch == engine.best_batch else ""),
        number(timing.p50.value, note=between(timing.p50)),
        tail(timing.p99),
        number(timing.throughput.value, unit="/s", note=between(timing.throughput)),
    )


def _verdict(engine: EngineProfile, ratio: BatchRatio | None) -> tuple[Cell, Cell]:
    if ratio:
        return (
            number(ratio.ratio.value, unit="×", note=between(ratio.ratio)),
            label(ratio.verdict),
        )
    if engine.kind == "teacher":
        return Cell("1", 1.0, "the reference", "quiet"), Cell("–", "", tone="quiet")
    return number(None), Cell(UNMEASURED, tone="quiet")
