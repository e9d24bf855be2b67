"""What changed since another run: `lorkd compare` inside the page."""

from __future__ import annotations

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.changes import Change
from lorkd_deploy.profiling.compare import RunChanges
from lorkd_deploy.reporting.cells import label, significant
from lorkd_deploy.reporting.facts.cautions import sentence
from lorkd_deploy.reporting.table import Cell, Column, Table, Tone

_COLUMNS = (
    Column("engine", "Engine", numeric=False),
    Column("figure", "Figure", numeric=False),
    Column("first", "Then"),
    Column("second", "Now"),
    Column("change", "Change", hint="now over then of times and sizes, now minus then of answers"),
    Column("verdict", "Verdict", numeric=False),
)
_TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}


def changes(found: RunChanges) -> Table:
    """A row for each figure that changed beyond noise; the caption has their number and notes."""
    rows = tuple(_row(change) for change in found.beyond_noise)
    count = f"{len(rows)} of {len(found.changes)} figures changed beyond noise"
    when = f"since the run of {found.first}; this one was measured {found.second}"
    said = " ".join([f"{count} {when}.", *map(sentence, found.notes)])
    return Table("changes", "Against another run", said, _COLUMNS, rows)


def _row(change: Change) -> tuple[Cell, ...]:
    return (
        label(change.engine),
        label(change.metric),
        Cell(significant(change.first, 4), change.first),
        Cell(significant(change.second, 4), change.second),
        _change(change.change, relative=change.relative),
        label(change.verdict, tone=_TONES.get(change.verdict, "")),
    )


def _change(found: Interval, *, relative: bool) -> Cell:
    value, low, high = (
        significant(v) if relative else f"{v:+.3f}".replace("-", "−")
        for v in (found.value, found.low, found.high)
    )
    return Cell(f"{value} ×" if relative else value, found.value, f"{low} to {high}")
