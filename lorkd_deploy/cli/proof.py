"""Parity figures as a row's cells, the same after `lorkd export` and `lorkd verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorkd_deploy.deploy.parity import Parity

COLUMNS = ("parity", "inputs", "test images", "max |difference|", "tolerance", "labels flipped")


def cells(parity: Parity | None) -> tuple[object, ...]:
    """One cell for each of `COLUMNS`; the tolerance is the tightest of the engine's tasks."""
    if parity is None:
        return ("not run",) + (None,) * (len(COLUMNS) - 1)
    rows = {"inputs": 0, "images": 0}
    for compared in parity.compared:
        rows[compared.on] += compared.rows
    return (
        parity.status,
        rows["inputs"],
        rows["images"] or None,
        parity.max_abs,
        min((compared.tolerance for compared in parity.compared), default=None),
        parity.flips,
    )
