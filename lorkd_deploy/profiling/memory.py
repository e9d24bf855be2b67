"""Resident memory of this process, as the kernel counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SOURCE = "VmRSS and VmHWM of /proc/self/status"
NO_SOURCE = "not measured: this kernel doesn't tell a process its peak memory"


@dataclass(frozen=True)
class Resident:
    """MiB now and at the highest so far; None where the kernel doesn't tell."""

    now: float | None
    peak: float | None


def resident(status: Path = Path("/proc/self/status")) -> Resident:
    """This process's resident memory.

    `getrusage` is no substitute: after fork and exec its maximum begins with the parent's.
    """
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    except OSError:
        return Resident(None, None)
    return Resident(_mib(lines.get("VmRSS")), _mib(lines.get("VmHWM")))


def _mib(field: str | None) -> float | None:
    return None if field is None else int(field.split()[0]) / 1024
