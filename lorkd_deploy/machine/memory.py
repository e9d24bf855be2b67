"""Memory of a process and of the machine, as the kernel counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.machine.kernel import control_groups, text

MIB = 1 << 20
SOURCE = "VmRSS and VmHWM of /proc/self/status"
NO_SOURCE = "not measured: this kernel doesn't tell a process its peak memory"
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as nearly 2^63 bytes


@dataclass(frozen=True)
class Resident:
    """MiB now and at the highest so far; None where the kernel doesn't tell."""

    now: float | None
    peak: float | None


def resident(status: Path = Path("/proc/self/status")) -> Resident:
    """This process's resident memory.

    psutil doesn't give the peak, and loading it would add to what is measured. `getrusage` is no
    substitute: after fork and exec its maximum begins with the parent's.
    """
    lines = dict(line.split(":", 1) for line in (text(status) or "").splitlines() if ":" in line)
    now, peak = lines.get("VmRSS"), lines.get("VmHWM")
    return Resident(_mib(now), _mib(peak))


def _mib(field: str | None) -> float | None:
    return None if field is None else int(field.split()[0]) / 1024


@dataclass(frozen=True)
class ProcessMemory:
    """MiB of another process. Of its proportional set size a page that n processes map counts as
    1/n of a page: the sum over processes is what they take of the machine together. None where
    the kernel doesn't tell.
    """

    resident: float | None
    proportional: float | None


def process_memory(pid: int) -> ProcessMemory:
    """The memory of a process of this user."""
    import psutil  # not at the top: an engine's own process imports this module, and not psutil

    try:
        found = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return ProcessMemory(None, None)
    proportional = getattr(found, "pss", None)  # Linux alone counts it
    return ProcessMemory(found.rss / MIB, None if proportional is None else proportional / MIB)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that control groups allow; None: no limit."""
    limits = []
    for folder in control_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = text(folder / name)
            if limit and limit != "max" and int(limit) < _UNLIMITED:
                limits.append(int(limit))
    return min(limits, default=None)
