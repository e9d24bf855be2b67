"""One image's way from its file to an answer, a row for each engine."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import END_TO_END
from lorkd_deploy.reporting.cells import column, engine_cell, spread
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Column, Table

CAPTION = (
    "Medians of the rounds, ms, with the smallest and the largest round in small print: decoding "
    "a PNG, making it the network's input, the runtime's call, and from logits to a class."
)


def stages(sources: Sources, department: str) -> Table | None:
    """The stages of a department's engines and of the teacher's; None where none was measured."""
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("read_ms", "Reading"),
        Column("preprocess_ms", "Preprocessing"),
        Column("inference_ms", "Inference"),
        Column("postprocess_ms", "Postprocessing"),
        column(END_TO_END),
    )
    rows = []
    for engine in sources.engines(department):
        of = engine.stages
        parts = (of.read, of.preprocess, of.inference, of.postprocess, of.end_to_end)
        rows.append((engine_cell(engine), *map(spread, parts)))
    if not rows:
        return None
    return Table("stages", "From an image file to an answer", CAPTION, columns, tuple(rows))
