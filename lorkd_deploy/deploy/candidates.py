"""What `--precision auto` chose between: every candidate's figures, kept in the engine's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lorkd_deploy.deploy.parity import Parity
from lorkd_deploy.errors import GateError
from lorkd_deploy.schema import Part

AUTO = "auto"
BASELINE = "fp32"
MAX_DROP = 0.5  # points
ORDER = ("fp32", "fp16", "bf16", "int8")  # from exact to coarse, as the table shows them


class Candidate(Part):
    """One precision and what was measured of it on this machine.

    `accuracy` (0 … 1, by task) is the validation split's through the engine; `drop` what it costs
    against fp32 in points, of the task that loses most; `p50_ms` the median over rounds of a
    round's median at batch 1, `rounds_ms` those medians; `bytes` the size of its files. They are
    None where the engine was not built, or its parity failed: `reason` says why it isn't taken.
    """

    precision: str
    status: Literal["taken", "not taken", "parity failed", "not built"]
    reason: str | None = None
    parity: Parity | None = None
    accuracy: dict[str, float] | None = None
    drop: float | None = None
    p50_ms: float | None = None
    rounds_ms: tuple[float, ...] = ()
    bytes: int | None = None


class Choice(Part):
    """The table of candidates of one engine, and how they were measured.

    `images` is the number of validation images by task. All candidates of a round were measured
    one after the other at batch 1, forwards and backwards in turn, in one process.
    """

    candidates: tuple[Candidate, ...]
    max_drop: float
    images: dict[str, int]
    rounds: int
    seconds: float
    threads: int

    @property
    def taken(self) -> str:
        """The precision that was taken."""
        return next(entry.precision for entry in self.candidates if entry.status == "taken")


def drop(exact: Mapping[str, float], coarse: Mapping[str, float]) -> float:
    """Points of accuracy that `coarse` loses against `exact`, of the task that loses most."""
    return max(100 * (exact[task] - coarse[task]) for task in exact)


def judged(measured: list[Candidate], max_drop: float) -> tuple[Candidate, ...]:
    """The same candidates with a status each: the fastest that loses `max_drop` points at most.

    Those that weren't measured stay as they are. Raises `GateError` where none was: there is
    always fp32, unless its own parity failed.
    """
    able = [entry for entry in measured if entry.p50_ms is not None]
    # A drop is a difference of fractions: 0.5 points may come out as 0.50000000000001.
    inside = [e for e in able if e.drop is not None and e.drop <= max_drop + 1e-9]
    if not inside:
        raise GateError("no candidate could be measured", fix="choose a --precision")
    fastest = min(inside, key=lambda entry: entry.p50_ms or 0.0)
    return tuple(_with_status(entry, fastest, max_drop) for entry in measured)


def _with_status(entry: Candidate, fastest: Candidate, max_drop: float) -> Candidate:
    if entry.p50_ms is None or entry.drop is None or fastest.p50_ms is None:
        return entry
    if entry is fastest:
        return entry.model_copy(update={"status": "taken"})
    if entry.drop > max_drop + 1e-9:
        reason = f"loses {entry.drop:.2f} points, {max_drop:g} are allowed"
    else:
        reason = f"{fastest.precision} is {entry.p50_ms / fastest.p50_ms:.2f} times as fast"
    return entry.model_copy(update={"status": "not taken", "reason": reason})
