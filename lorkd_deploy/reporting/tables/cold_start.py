"""What passes until an engine answers, with its files in the system's cache and without."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.profiling.figures import FIRST, LOAD, START, UNCACHED_START
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import column, engine_cell, engine_name, number, spread
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

CAPTION = (
    "Medians of the rounds, ms, with the smallest and the largest round in small print; each round "
    "is a process of its own. Cached: the files had been read before, as when a service is started "
    "again. Not cached: the system was made to forget the files that the process reads; the last "
    "column says how much of them it did forget."
)


def cold_start(sources: Sources, department: str) -> Table | None:
    """Cold starts of a department's engines and of the teacher's; None where none was measured."""
    listed = sources.engines(department)
    if not listed:
        return None
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("import_ms", "Runtime", hint="importing the runtime's library"),
        column(LOAD),
        Column("first_ms", FIRST.title),
        column(START),
        Column("uncached_load_ms", "Load, not cached"),
        Column("uncached_first_ms", "First answer, not cached"),
        column(UNCACHED_START),
        Column("forgotten", "Forgotten", hint="share of the files' bytes"),
        Column("build_s", "Build", hint="seconds that its export took, where it was exported"),
    )
    rows = []
    for engine in listed:
        cold = engine.cold_start
        gone = cold.forgotten
        rows.append(
            (
                engine_cell(engine),
                spread(cold.runtime_import),
                spread(cold.load),
                spread(cold.first_inference),
                spread(cold.process_to_first_answer),
                spread(cold.uncached_load),
                spread(cold.uncached_first_inference),
                spread(cold.uncached_process_to_first_answer),
                Cell(f"{100 * gone.median:.0f} %", gone.median) if gone else number(None),
                number(engine.build_seconds, 2, "s"),
            )
        )
    return Table("start", "Cold start", f"{CAPTION} {_caches(listed)}", columns, tuple(rows))


def _caches(engines: Sequence[EngineProfile]) -> str:
    """Whether a runtime keeps compiled models, and which engines had to fill its folder first."""
    keeping = [engine for engine in engines if "from_cache" in engine.facts]
    if not keeping:
        return "No runtime keeps a cache of its own here."
    targets = ", ".join(sorted({engine.target for engine in keeping}))
    text = (
        f"Engines in {targets} were exported with a folder for compiled models, so that Load reads "
        "from it and compiles nothing; the folder's files are among those that are forgotten."
    )
    filled = [engine_name(engine) for engine in keeping if not engine.facts["from_cache"]]
    if filled:
        text += f" It was empty in the first round of {', '.join(filled)}, which had to compile."
    return text
