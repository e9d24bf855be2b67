"""One image's way from its file to an answer, an engine a row."""

from __future__ import annotations

from lorkd_deploy.reporting.cells import spread, words
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Column, Table
from lorkd_deploy.reporting.tables.engines import engine_name, of_department

CAPTION = (
    "Medians of the rounds, ms, with the smallest and the largest round in small print: decoding "
    "a PNG, making it the network's input, the runtime's call, and from logits to a class."
)


def stages(sources: Sources, department: str, key: str) -> Table | None:
    """The stages of a department's engines and of the teacher's; None where none was measured."""
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("read_ms", "Reading"),
        Column("preprocess_ms", "Preprocessing"),
        Column("inference_ms", "Inference"),
        Column("postprocess_ms", "Postprocessing"),
        Column("end_to_end_ms", "End to end"),
    )
    rows = []
    for engine in of_department(sources, department):
        if (found := engine.stages) is None:
            continue
        parts = (found.read, found.preprocess, found.inference, found.postprocess)
        rows.append(
            (
                words(engine_name(engine), note=f"{engine.target} {engine.precision}"),
                *(spread(part, "") for part in (*parts, found.end_to_end)),
            )
        )
    if not rows:
        return None
    return Table(key, "From an image file to an answer", CAPTION, columns, tuple(rows))
