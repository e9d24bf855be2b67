"""Where the time goes: the layers that take most of it, of the first table's engines."""

from __future__ import annotations

from collections.abc import Iterator

from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import engine_cell, label, number
from lorkd_deploy.reporting.facts.shown_engine import chosen
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

MOST = 8  # layers of an engine
CAPTION = (
    "Of the first table's engines and the foundation model's beside them, the layers that take "
    "most, in ms at the smallest batch, by the runtime's own profile. That slows an engine, so "
    "the shares say more than the times. All layers are in profile.json."
)
_COLUMNS = (
    Column("engine", "Engine", numeric=False),
    Column("layer", "Layer", numeric=False),
    Column("kind", "Kind", numeric=False),
    Column("precision", "Computes in", numeric=False),
    Column("ms", "Time"),
    Column("share", "Share"),
)


def layers(sources: Sources) -> Table | None:
    """A few rows for each engine, the rest of its layers in one; None where no runtime told."""
    shown = [engine for p in chosen(sources) for engine in (p.teacher, p.expert) if engine]
    unique = {engine.engine: engine for engine in shown if engine.layers}
    rows = tuple(row for engine in unique.values() for row in _rows(engine))
    return Table("layers", "Where the time goes", CAPTION, _COLUMNS, rows) if rows else None


def _rows(engine: EngineProfile) -> Iterator[tuple[Cell, ...]]:
    ranked = sorted(engine.layers, key=lambda layer: layer.ms, reverse=True)
    whole = sum(layer.ms for layer in ranked) or 1.0
    name = engine_cell(engine)
    for layer in ranked[:MOST]:
        share = Cell(f"{100 * layer.ms / whole:.0f} %", layer.ms / whole)
        words = (label(layer.name), label(layer.kind), label(layer.precision))
        yield (name, *words, number(layer.ms), share)
    if rest := ranked[MOST:]:
        left = sum(layer.ms for layer in rest)
        share = Cell(f"{100 * left / whole:.0f} %", left / whole)
        kinds = ", ".join(sorted({layer.precision for layer in rest}))
        words = (label(f"{len(rest)} others"), label(""), label(kinds))
        yield (name, *words, number(left), share)
