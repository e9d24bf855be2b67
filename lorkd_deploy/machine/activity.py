"""What the machine is doing: its CPUs' busy time, stops, clock and heat, as the kernel tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lorkd_deploy.machine.kernel import control_groups, number, text

_TICKS = 100  # a second in /proc/stat: USER_HZ, which Linux keeps at 100 on every machine


def busy_seconds(cpus: Sequence[int] | None, root: Path = Path("/")) -> float | None:
    """How long these CPUs (None: all) have been busy so far, whoever used them; hypervisors too."""
    stat = text(root / "proc/stat")
    if stat is None:
        return None
    wanted = {"cpu"} if cpus is None else {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name in wanted:
            # user nice system idle iowait irq softirq steal; guest time is in user already
            values = [int(field) for field in fields[:8]]
            ticks += sum(values) - values[3] - values[4]
    return ticks / _TICKS


def throttled_seconds(root: Path = Path("/")) -> float | None:
    """How long this process's control groups have stopped it so far, whichever of them did.

    Each group counts only the stops of its own limit, so that those of all levels add up. Where
    two levels stop it at the same time that is too much: rather a quiet round too few.
    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html
    """
    found = []
    for folder in control_groups(root, "cpu"):
        facts = dict(line.split() for line in (text(folder / "cpu.stat") or "").splitlines())
        if "throttled_usec" in facts:  # version 2
            found.append(int(facts["throttled_usec"]) / 1e6)
        elif "throttled_time" in facts:  # version 1, nanoseconds
            found.append(int(facts["throttled_time"]) / 1e9)
    return sum(found) if found else None


def slowdowns(root: Path = Path("/")) -> int | None:
    """How often CPUs have slowed themselves down for heat so far (Intel's and AMD's count it)."""
    counters = "cpu[0-9]*/thermal_throttle/core_*_count"
    found = _numbers((root / "sys/devices/system/cpu").glob(counters))
    return sum(found) if found else None


def mhz(cpus: Sequence[int] | None, root: Path = Path("/")) -> float | None:
    """Mean clock of these CPUs now; None where the kernel doesn't tell that of each."""
    files = [
        root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus or (0,)
    ]
    found = _numbers(files)
    return sum(found) / len(found) / 1000 if len(found) == len(files) else None


def celsius(root: Path = Path("/")) -> float | None:
    """The warmest of the machine's thermal zones.

    psutil reads other sensors first, disks among them, which say little about the processor.
    """
    found = _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    return max(found) / 1000 if found else None


def _numbers(files: Iterable[Path]) -> list[int]:
    return [value for file in files if (value := number(file)) is not None]
