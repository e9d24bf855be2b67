"""Where the memory goes: an engine alone, and the engines of all departments on one machine."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import GPU, LOADED, PEAK, SIZE
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import column, engine_cell, figure_cell, label, number, spread
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

MEMORY = (
    "Resident memory over a process that has Python and NumPy and no engine: after the engine was "
    "loaded, and the most under load at the smallest batch. Medians of the rounds, with the "
    "smallest and the largest round in small print."
)
ALL = (
    "The engines of every department at once, each after its first answer, whole processes with "
    "Python in them. In processes of their own they share the pages of the same libraries; what "
    "that saves is the difference of the two sums. In one process the runtime is there once, and "
    "each further department costs what is in small print."
)


def memory(sources: Sources, department: str) -> Table | None:
    """Memory of a department's engines and of the teacher's; None where none was measured."""
    listed = sources.engines(department)
    if not listed:
        return None
    columns = [
        Column("engine", "Engine", numeric=False),
        Column("empty_mib", "Empty process"),
        column(LOADED),
        Column(PEAK.key, "Under load"),
        Column("disk_bytes", "On disk", hint=SIZE.hint),
    ]
    further = [
        (field, title, hint)
        for field, title, hint in (
            ("gpu", GPU.title, GPU.hint),
            (
                "allocator",
                "Runtime's allocator",
                "on the GPU; TensorRT's alone tells, without the weights",
            ),
            ("unified", "Unified memory", "by how much a Jetson's available memory fell"),
        )
        if any(getattr(engine.memory, field) for engine in listed)
    ]
    columns += [Column(f"{field}_mib", title, hint=hint) for field, title, hint in further]
    rows = tuple(_row(engine, [field for field, *_ in further]) for engine in listed)
    return Table("memory", "Memory", f"{MEMORY} {_gpu(listed)}".strip(), tuple(columns), rows)


def _row(engine: EngineProfile, further: list[str]) -> tuple[Cell, ...]:
    found = engine.memory
    return (
        engine_cell(engine),
        spread(found.empty, "MiB"),
        spread(found.loaded, "MiB"),
        spread(found.peak, "MiB"),
        figure_cell(SIZE, engine.bytes),
        *(spread(getattr(found, field), "MiB") for field in further),
    )


def _gpu(listed: list[EngineProfile]) -> str:
    sources = {engine.memory.gpu_source for engine in listed} - {None}
    return f"GPU memory: {'; '.join(sorted(map(str, sources)))}." if sources else ""


def all_departments(sources: Sources) -> Table | None:
    """All departments' engines on one machine; None where that was not measured."""
    found = sources.profile.together if sources.profile else ()
    if not found:
        return None
    columns = (
        Column("engines", "Engines", numeric=False),
        Column("apart_mib", "Each alone, summed", hint="resident memory of each process"),
        Column("apart_shared_mib", "Processes together", hint="what is shared counts once"),
        Column("one_process_mib", "All in one process", hint="resident memory"),
        Column("one_engine_mib", "One department alone", hint="resident memory of the process"),
        Column("disk_bytes", "On disk"),
    )
    rows = []
    for entry in found:
        count = len(entry.engines)
        saved = _difference(entry.apart, entry.apart_shared)
        each = _difference(entry.one_process, entry.one_engine)
        rows.append(
            (
                label(f"{count} experts", note=f"{entry.target} {entry.precision}"),
                number(entry.apart, unit="MiB"),
                number(
                    entry.apart_shared,
                    unit="MiB",
                    note="" if saved is None else f"{saved:.0f} MiB shared",
                ),
                number(
                    entry.one_process,
                    unit="MiB",
                    note="" if each is None else f"{each / (count - 1):+.1f} MiB per department",
                ),
                number(entry.one_engine, unit="MiB"),
                figure_cell(SIZE, entry.bytes),
            )
        )
    title = "All departments on one machine"
    return Table("together-table", title, ALL, columns, tuple(rows))


def _difference(more: float | None, less: float | None) -> float | None:
    return None if more is None or less is None else more - less
