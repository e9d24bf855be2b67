"""What `--precision auto` chose between: every candidate's figures, kept in the engine's record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from lorkd_deploy.deploy.proof.parity import Parity
from lorkd_deploy.errors import GateError
from lorkd_deploy.schema import Part

AUTO = "auto"
MAX_DROP = 0.5  # points
T = TypeVar("T")


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
    done = [entry for entry in measured if entry.p50_ms is not None]
    taken = fastest(done, lambda e: e.drop or 0.0, lambda e: e.p50_ms or 0.0, max_drop)
    if taken is None:
        raise GateError("no candidate could be measured", fix="choose a --precision")
    return tuple(_with_status(entry, taken, max_drop) for entry in measured)


def fastest(
    entries: Iterable[T],
    drop_of: Callable[[T], float],
    milliseconds: Callable[[T], float],
    max_drop: float = MAX_DROP,
) -> T | None:
    """The fastest entry that loses `max_drop` points of accuracy at most; None where there is none.

    This is the rule of `--precision auto`, and of the report's first screen.
    """
    inside = [entry for entry in entries if not too_much(drop_of(entry), max_drop)]
    return min(inside, key=milliseconds, default=None)


def too_much(lost: float, max_drop: float = MAX_DROP) -> bool:
    """Whether `lost` points are more than `max_drop`."""
    # A difference of fractions: 0.5 points may come out as 0.50000000000001.
    return lost > max_drop + 1e-9


def _with_status(entry: Candidate, fastest: Candidate, max_drop: float) -> Candidate:
    if entry.p50_ms is None or entry.drop is None or fastest.p50_ms is None:
        return entry
    if entry is fastest:
        return entry.model_copy(update={"status": "taken"})
    if too_much(entry.drop, max_drop):
        reason = f"loses {entry.drop:.2f} points, {max_drop:g} are allowed"
    else:
        reason = f"{fastest.precision} is {entry.p50_ms / fastest.p50_ms:.2f} times as fast"
    return entry.model_copy(update={"status": "not taken", "reason": reason})
