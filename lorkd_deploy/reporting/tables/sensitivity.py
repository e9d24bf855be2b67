"""What int8 costs, layer by layer, of engines that were exported with `--max-drop`."""

from __future__ import annotations

from collections.abc import Iterator

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.precisions.sensitivity import LayerGroup, Sensitivity
from lorkd_deploy.reporting.cells import artifact_cell, label, signed
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

MOST = 8  # layers of an engine that don't stay in float32
CAPTION = (
    "Of engines that may lose no more than --max-drop: how many points of accuracy a layer alone "
    "in float32 gives back, on the validation images that int8 changes most, and whether it stays "
    "so. By NNCF's accuracy control; artifact.json has every layer."
)
_COLUMNS = (
    Column("engine", "Engine", numeric=False),
    Column("layers", "Layers", numeric=False, hint="quantised together"),
    Column("points", "Accuracy", hint="points, with these alone in float32"),
    Column("images", "Images"),
    Column("computes_in", "Computes in", numeric=False),
)


def sensitivity(sources: Sources) -> Table | None:
    """A few rows for each such engine; None where there is none."""
    tried = [(a, a.sensitivity) for a in sources.artifacts if a.sensitivity]
    rows = tuple(row for artifact, found in tried for row in _rows(artifact, found))
    if not rows:
        return None
    return Table("int8", "What int8 costs, layer by layer", CAPTION, _COLUMNS, rows)


def _rows(artifact: Artifact, found: Sensitivity) -> Iterator[tuple[Cell, ...]]:
    engine = artifact_cell(artifact)
    if not found.groups:
        nothing = label("none: int8 alone loses no more than was allowed", tone="quiet")
        yield (engine, nothing, Cell("–"), _count(found.images), label("int8"))
    shown = [group for group in found.groups if group.left]
    shown += [group for group in found.groups if not group.left][:MOST]
    for group in sorted(shown, key=lambda one: one.gain, reverse=True):
        yield (engine, *_cells(group))
    if rest := len(found.groups) - len(shown):
        quiet = Cell("–", tone="quiet")
        yield (engine, label(f"{rest} others"), quiet, quiet, label("int8"))


def _cells(group: LayerGroup) -> tuple[Cell, ...]:
    return (
        label(", ".join(group.layers)),
        Cell(signed(group.gain, 2), group.gain),
        _count(group.images),
        label("fp32" if group.left else "int8"),
    )


def _count(images: int) -> Cell:
    return Cell(f"{images:,}", images)
