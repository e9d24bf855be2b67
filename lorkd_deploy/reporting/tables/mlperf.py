"""MLPerf's scenarios as LoadGen measured them, and what of them doesn't conform."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import ACCURACY
from lorkd_deploy.profiling.mlperf.profile import ScenarioRun
from lorkd_deploy.reporting.cells import FOUNDATION, engine_cell, figure_cell, label, number
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

CAPTION = (
    "Measured by MLCommons LoadGen, which issues the queries and keeps the time: one image after "
    "the other (single-stream), eight at once (multi-stream), arriving at random at the highest "
    "rate at which 99 of 100 answers keep the bound (server), all at once (offline). Percentiles "
    "are those of one query."
)


def scenarios(sources: Sources, department: str) -> Table | None:
    """The scenarios of a department's engines and of the teacher; None where none was run."""
    rows = tuple(
        _row(entry)
        for entry in (sources.scenarios.runs if sources.scenarios else ())
        if entry.department in (None, department)
    )
    if not any(cells[1].value != FOUNDATION for cells in rows):
        return None
    columns = (
        Column("scenario", "Scenario", numeric=False),
        Column("engine", "Engine", numeric=False),
        Column("value", "Result", hint="what MLPerf reports of this scenario"),
        Column("p50_ms", "p50", hint="ms a query"),
        Column("p90_ms", "p90", hint="ms a query"),
        Column("p99_ms", "p99", hint="ms a query"),
        Column("queries", "Queries"),
        Column("accuracy", ACCURACY.title, hint="by LoadGen's accuracy mode, all test images"),
        Column("verdict", "LoadGen says", numeric=False),
        Column("conforms", "Conforms", numeric=False, hint="to MLPerf's rules"),
    )
    return Table("scenarios", "MLPerf scenarios", CAPTION, columns, rows)


def _row(entry: ScenarioRun) -> tuple[Cell, ...]:
    bound = f", 99 % within {entry.server_ms:g} ms" if entry.server_ms else ""
    accuracy = entry.scores[0].accuracy if len(entry.scores) == 1 else None
    several = f"{len(entry.scores)} tasks" if len(entry.scores) > 1 else ""
    why = "quick run" if entry.quick else "; ".join(entry.because)
    return (
        label(entry.scenario),
        engine_cell(entry),
        number(entry.value, unit=entry.unit, note=f"{entry.metric}{bound}"),
        *(number(entry.percentiles.get(mark)) for mark in ("50", "90", "99")),
        number(entry.queries),
        Cell(several, tone="quiet") if several else figure_cell(ACCURACY, accuracy),
        label(entry.result.lower(), tone="" if entry.result == "VALID" else "bad"),
        label("yes" if entry.conforms else "no", note="" if entry.conforms else why),
    )


def warnings(sources: Sources) -> list[str]:
    """What may have disturbed the scenarios, and that some don't conform to MLPerf's rules."""
    if not sources.scenarios:
        return []
    runs = sources.scenarios.runs
    found = [f"Of the MLPerf scenarios: {note}." for note in sources.scenarios.notes]
    short = [entry for entry in runs if not entry.conforms]
    if not short:
        return found
    quick = sum(entry.quick for entry in short)
    text = f"{len(short)} of {len(runs)} MLPerf scenarios do not conform to MLPerf's rules"
    if quick:
        text += f", {quick} of them because they were quick runs of about a second"
    return [*found, text + ": the tables say which and why."]


def protocol(sources: Sources) -> list[str]:
    """How the scenarios were measured, in a paragraph; none where none was."""
    runs = sources.scenarios.runs if sources.scenarios else ()
    if not runs:
        return []
    versions = ", ".join(sorted({entry.loadgen for entry in runs}))
    held = max(entry.performance_samples for entry in runs)
    return [
        f"The MLPerf scenarios are MLCommons LoadGen's ({versions}), in the process of the engine, "
        f"by the rules that are built into it; up to {held:,} prepared images are held in memory. "
        "The server scenario's rate is found by short tests first, and lowered where the long one "
        "doesn't hold it. Accuracy is counted from LoadGen's own log of the answers; all its logs "
        "lie beside the profile. No result was reviewed by MLCommons."
    ]
