"""Every engine at every batch size in one flat table: what an engineer copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lorkd_deploy.profiling.figures import (
    ACCURACY,
    AUC,
    JOULES,
    OF_CALLS,
    PEAK,
    RATIO,
    SIZE,
    START,
    Measured,
    measured,
)
from lorkd_deploy.profiling.profile import EngineProfile, Profile
from lorkd_deploy.profiling.timing import Timing
from lorkd_deploy.reporting.cells import (
    FEW_CALLS,
    between,
    column,
    difference_cell,
    engine_name,
    figure_cell,
    label,
    number,
    ratio_cell,
    significant,
)
from lorkd_deploy.reporting.facts.shown_engine import fault
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

CAPTION = (
    "Times are in ms per batch, over every call of every round, none trimmed; in small print the "
    "95 % interval, or the smallest and the largest round. Memory is resident memory over an empty "
    "process, smaller batches having run before. Accuracy is that of the engine's own answers."
)
NAMES = (
    Column("department", "Department", numeric=False),
    Column("model", "Model", numeric=False),
    Column("target", "Runtime", numeric=False),
    Column("precision", "Precision", numeric=False),
    Column("batch", "Batch"),
)
OF_REST = (START, SIZE, JOULES, ACCURACY, AUC)  # the same at every batch


def engines(sources: Sources) -> Table | None:
    """A row for each engine, the teacher's too, and batch size; None where none was measured."""
    profile = sources.profile
    if profile is None:
        return None
    figures = (*OF_CALLS, RATIO, PEAK, *OF_REST)
    columns = (
        *NAMES,
        *(replace(column(f), key="size_bytes") if f is SIZE else column(f) for f in figures),
        Column("accuracy_difference", "Difference", hint="expert minus foundation model, points"),
        Column("note", "Note", numeric=False),
    )
    faults = {
        pair.expert.engine: fault(pair, own)
        for own in map(sources.pairs_of, sources.manifest.tasks)
        for pair in own
        if pair.expert
    }
    rows = [
        (
            *_names(engine, timing),
            *_figures(measured(engine, profile).at(timing)),
            label(faults.get(engine.engine, ""), tone="bad"),
        )
        for engine in profile.engines
        for timing in engine.timings
    ]
    title = "Every engine, precision and batch size"
    caption = " ".join(filter(None, (CAPTION, _at_best(profile))))
    return Table("engines-table", title, caption, columns, tuple(rows)).without_gaps()


def _names(engine: EngineProfile, timing: Timing) -> tuple[Cell, ...]:
    best = "its best" if timing.batch == engine.best_batch else ""
    return (
        label("all" if engine.kind == "teacher" else engine.department),
        label(engine_name(engine)),
        label(engine.target),
        label(engine.precision),
        number(timing.batch, note=best),
    )


def _figures(of: Measured) -> Iterator[Cell]:
    for figure in OF_CALLS:
        yield figure_cell(figure, figure.read(of), absent=FEW_CALLS)
    yield _speed_up(of)
    yield figure_cell(PEAK, of.timing.peak_mib)
    for figure in OF_REST:
        yield figure_cell(figure, figure.read(of), absent="–")
    change = ACCURACY.of(of.difference)
    yield difference_cell(ACCURACY, change) if change else Cell("–", tone="quiet")


def _speed_up(of: Measured) -> Cell:
    """Beside the teacher at this batch, with the verdict where it isn't faster."""
    ratios = of.comparison.latency if of.comparison else ()
    found = next((entry for entry in ratios if entry.batch == of.timing.batch), None)
    if found is None:
        return Cell("–", tone="quiet")
    cell = ratio_cell(found)
    further = "" if found.verdict == "faster" else f"; {found.verdict}"
    return replace(cell, note=cell.note + further)


def _at_best(profile: Profile) -> str:
    """What each expert gains at its best batch; nothing where no best batch was searched for."""
    gains = [
        f"{pair.engine} {significant(pair.throughput.value)} × ({between(pair.throughput)})"
        for pair in profile.comparisons
        if pair.throughput
    ]
    if not gains:
        return ""
    what = "Images per second over the foundation model's, each at its own best batch"
    return f"{what}: {', '.join(gains)}."
