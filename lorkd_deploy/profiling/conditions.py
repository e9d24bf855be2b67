"""What the machine was doing while a round ran, and whether that spoils the round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lorkd_deploy.machine.gpu import Gpus, GpuState
from lorkd_deploy.machine.kernel import control_groups
from lorkd_deploy.schema import Part

OTHERS = 0.10  # share of the engine's CPUs that anything else may take before a round is disturbed
THROTTLED = 0.01  # share of a round in which a container's CPU limit may have stopped it
SLOWER = 0.20  # how much slower than in the median the machine may do a fixed piece of work
REPEATS = 3  # the most that a disturbed round is repeated
T = TypeVar("T", int, float)
_TICKS = 100  # a second in /proc/stat: USER_HZ, which Linux keeps at 100 on every machine


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
    return Snapshot(time.monotonic(), _busy(cpus, root), _throttled(root), _slowdowns(root))


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
        mhz=_mhz(cpus, root),
        celsius=_celsius(root),
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


def _busy(cpus: Sequence[int] | None, root: Path) -> float | None:
    wanted = {"cpu"} if cpus is None else {f"cpu{cpu}" for cpu in cpus}
    try:
        lines = (root / "proc/stat").read_text().splitlines()
    except OSError:
        return None
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name in wanted:
            # user nice system idle iowait irq softirq steal; guest time is in user already
            values = [int(field) for field in fields[:8]]
            ticks += sum(values) - values[3] - values[4]
    return ticks / _TICKS


def _throttled(root: Path) -> float | None:
    """Seconds for which this process's control groups have stopped it so far, whichever did.

    Each group counts the stops of its own limit alone, so that those of all levels add up. Where
    two levels stop at the same time that is too much: rather a quiet round too few.
    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html
    """
    found = []
    for folder in control_groups(root, "cpu"):
        try:
            facts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        except OSError:
            continue
        if "throttled_usec" in facts:  # version 2
            found.append(int(facts["throttled_usec"]) / 1e6)
        elif "throttled_time" in facts:  # version 1, nanoseconds
            found.append(int(facts["throttled_time"]) / 1e9)
    return sum(found) if found else None


def _slowdowns(root: Path) -> int | None:
    """How often the CPUs have slowed themselves down for heat so far (Intel and AMD tell it)."""
    found = []
    for file in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_*_count"):
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):
            continue
    return sum(found) if found else None


def _mhz(cpus: Sequence[int] | None, root: Path) -> float | None:
    """Mean clock of the engine's CPUs, where the kernel tells it."""
    found = []
    for cpu in cpus or (0,):
        file = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
        try:
            found.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):
            return None
    return sum(found) / len(found)


def _celsius(root: Path) -> float | None:
    """The warmest of the machine's thermal zones."""
    found = []
    for file in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)
