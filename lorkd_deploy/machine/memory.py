"""Memory of this process, as the kernel counts it."""

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
    lines = _fields(status)
    return Resident(_mib(lines.get("VmRSS")), _mib(lines.get("VmHWM")))


def proportional(rollup: Path = Path("/proc/self/smaps_rollup")) -> float | None:
    """Proportional set size, MiB: a page that n processes map counts as 1/n of a page.

    The sum over processes is what they take of the machine's memory together. None where the
    kernel doesn't tell.
    """
    return _mib(_fields(rollup).get("Pss"))


def _fields(file: Path) -> dict[str, str]:
    try:
        text = file.read_text()
    except OSError:
        return {}
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _mib(field: str | None) -> float | None:
    return None if field is None else int(field.split()[0]) / 1024
