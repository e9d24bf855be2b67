"""Energy counters of the machine: Intel's and AMD's RAPL, NVIDIA's NVML.

What can't be read (RAPL is the administrator's alone on most systems) is said and never estimated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.kernel import number, text

NO_SOURCE = "not measured: no RAPL or NVML energy counter can be read by this user here"
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Meter:
    """One counter: `read` gives joules since some moment."""

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to a later one, over at most one wrap of the counter."""
        if after < before and self.wraps_at is not None:
            return after + self.wraps_at - before
        return after - before


def meters(gpus: Gpus, root: Path = Path("/")) -> tuple[Meter, ...]:
    """Every counter that can be read: one for each CPU package, one for all GPUs together."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        if ":" in zone.name.removeprefix("intel-rapl:"):
            continue  # a part (core, dram) of a package that is counted already
        energy, wraps_at = number(zone / "energy_uj"), number(zone / "max_energy_range_uj")
        name = text(zone / "name")
        if energy is None or wraps_at is None or name is None:
            continue
        found.append(Meter(f"RAPL {name}", _microjoules(zone / "energy_uj"), wraps_at / 1e6))
    with suppress(OSError):
        gpus.joules()
        found.append(Meter("NVML", gpus.joules))
    return tuple(found)


def _microjoules(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) / 1e6


@dataclass(frozen=True)
class Power:
    """The machine's meters, and the power in watts that they show while nothing of ours runs."""

    meters: tuple[Meter, ...]
    idle: float

    @property
    def source(self) -> str:
        """Which counters, or why there are none."""
        return ", ".join(meter.name for meter in self.meters) or NO_SOURCE

    def now(self) -> Reading | None:
        """All meters now; None where there are none, or one can't be read just now."""
        return _read(self.meters) if self.meters else None

    def above_idle(self, before: Reading | None, images: int) -> float | None:
        """Joules an image since `before`, over what the idle machine would have used; None where
        the meters could not be read then or now."""
        after = self.now()
        if before is None or after is None:
            return None
        used = _spent(self.meters, before, after) - self.idle * (after.at - before.at)
        return used / images


@dataclass(frozen=True)
class Reading:
    """All meters at one moment of a monotonic clock, seconds."""

    at: float
    joules: tuple[float, ...]


def open_power(gpus: Gpus, root: Path = Path("/"), seconds: float = IDLE_SECONDS) -> Power:
    """The meters, and the idle power as they show it over `seconds`."""
    found = meters(gpus, root)
    if not found:
        return Power((), 0.0)
    before = _read(found)
    time.sleep(seconds)
    after = _read(found)
    if before is None or after is None:
        return Power((), 0.0)
    return Power(found, _spent(found, before, after) / (after.at - before.at))


def _read(found: tuple[Meter, ...]) -> Reading | None:
    try:
        return Reading(time.monotonic(), tuple(meter.read() for meter in found))
    except (OSError, ValueError):  # a driver that is busy or was unloaded: no reason to end
        return None


def _spent(found: tuple[Meter, ...], before: Reading, after: Reading) -> float:
    parts = zip(found, before.joules, after.joules, strict=True)
    return sum(meter.between(start, end) for meter, start, end in parts)
