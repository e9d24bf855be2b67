"""What the machine was doing while a round ran, and whether that spoils the round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lorkd_deploy.machine import activity
from lorkd_deploy.machine.gpu import Gpus, GpuState
from lorkd_deploy.schema import Part

OTHERS = 0.10  # share of the engine's CPUs that anything else may take before a round is disturbed
THROTTLED = 0.01  # share of a round in which a container's CPU limit may have stopped it
SLOWER = 0.20  # how much slower than in the median the machine may do a fixed piece of work
T = TypeVar("T", int, float)


class Conditions(Part):
    """What the machine did during one round of one engine, each figure the worst of its parts: a
    batch size each, and the stages.

    `others` is the share of the engine's CPUs that anything else took, `throttled` the share of
    the part in which a container's CPU limit stopped the engine; `mhz` and `celsius` are those of
    the part's end, the `gpu_` ones the first GPU's, and `gpu_slowed` what slowed it then (heat, a
    cap on its power). `slowdowns` is how often a CPU of the machine slowed itself down for heat in
    all parts together. `pace` is the time of a fixed piece of work beside the calls, over the
    median that the benchmark has seen until then. None: the kernel or NVML doesn't tell.
    `attempts` is how often the round was measured: while it was `disturbed` beyond the protocol's
    bounds it was repeated, and the least disturbed kept.
    """

    others: float | None
    throttled: float | None
    mhz: float | None
    celsius: float | None
    disturbed: bool
    attempts: int = 1
    slowdowns: int | None = None
    gpu_mhz: float | None = None
    gpu_celsius: float | None = None
    gpu_slowed: str | None = None
    pace: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """One moment: seconds of a monotonic clock, busy and throttled seconds so far."""

    at: float
    busy: float | None
    throttled: float | None
    slowdowns: int | None = None


def snapshot(cpus: Sequence[int] | None, root: Path = Path("/")) -> Snapshot:
    """How long the CPUs (None: all) have been busy so far, whoever used them; hypervisors too."""
    return Snapshot(
        time.monotonic(),
        activity.busy_seconds(cpus, root),
        activity.throttled_seconds(root),
        activity.slowdowns(root),
    )


def conditions(
    before: Snapshot,
    after: Snapshot,
    own: float,
    cpus: Sequence[int] | None,
    root: Path = Path("/"),
    *,
    gpus: Gpus | None = None,
    pace: float | None = None,
) -> Conditions:
    """What happened between two snapshots in which the engine itself used `own` CPU seconds.

    Clock and temperature are those of now, right after them. `pace` is the time of a fixed piece
    of work over the median seen: it tells of the clock and of neighbours (the core's other
    thread, other virtual machines) where the kernel doesn't.
    """
    wall = max(1e-9, after.at - before.at)
    others = None
    if before.busy is not None and after.busy is not None:
        count = len(cpus) if cpus else 1
        # Ticks of 10 ms: a short round's share is coarse, and never below nothing.
        others = max(0.0, after.busy - before.busy - own) / (wall * count)
    throttled = None
    if before.throttled is not None and after.throttled is not None:
        throttled = max(0.0, after.throttled - before.throttled) / wall
    slowdowns = None
    if before.slowdowns is not None and after.slowdowns is not None:
        slowdowns = after.slowdowns - before.slowdowns
    gpu = gpus.state() if gpus else GpuState()
    hot = bool(slowdowns) or gpu.slowed is not None
    return Conditions(
        others=others,
        throttled=throttled,
        mhz=activity.mhz(cpus, root),
        celsius=activity.celsius(root),
        disturbed=(others or 0) > OTHERS
        or (throttled or 0) > THROTTLED
        or (pace or 1) > 1 + SLOWER
        or hot,
        pace=pace,
        slowdowns=slowdowns,
        gpu_mhz=gpu.mhz,
        gpu_celsius=gpu.celsius,
        gpu_slowed=gpu.slowed,
    )


def worst(parts: Sequence[Conditions]) -> Conditions:
    """The parts of a round as one: of each figure the worst, so that what disturbed a single batch
    isn't lost in the average."""
    reasons = sorted({part.gpu_slowed for part in parts if part.gpu_slowed})
    return Conditions(
        others=_known(max, [part.others for part in parts]),
        throttled=_known(max, [part.throttled for part in parts]),
        mhz=_known(min, [part.mhz for part in parts]),
        celsius=_known(max, [part.celsius for part in parts]),
        disturbed=any(part.disturbed for part in parts),
        pace=_known(max, [part.pace for part in parts]),
        slowdowns=_known(sum, [part.slowdowns for part in parts]),
        gpu_mhz=_known(min, [part.gpu_mhz for part in parts]),
        gpu_celsius=_known(max, [part.gpu_celsius for part in parts]),
        gpu_slowed="; ".join(reasons) or None,
    )


def _known(choose: Callable[[list[T]], T], values: Sequence[T | None]) -> T | None:
    found = [value for value in values if value is not None]
    return choose(found) if found else None
