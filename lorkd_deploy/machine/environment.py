"""Everything about the machine that bears on a measured figure: no host name, no user, no path."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.kernel import number, text
from lorkd_deploy.machine.memory import memory_limit
from lorkd_deploy.machine.packages import versions
from lorkd_deploy.machine.processor import allowed_cpus, cpu_limit, cpu_model
from lorkd_deploy.schema import Part


class Load(Part):
    """The machine's load average over 1, 5 and 15 minutes; the benchmark itself adds to it."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]


class Environment(Part):
    """The machine as far as it bears on the figures: no host name, no user, no path."""

    cpu: str
    architecture: str
    logical_cpus: int
    physical_cpus: int | None
    allowed_cpus: int
    cpu_limit: float | None
    governor: str | None
    max_mhz: float | None
    memory_mib: int
    memory_limit_mib: int | None
    gpus: tuple[str, ...]
    battery: bool
    system: str
    kernel: str
    python: str
    packages: dict[str, str]
    load: Load | None = None


def environment(root: Path = Path("/")) -> Environment:
    """Read the machine; `root` is where `/proc` and `/sys` lie."""
    limit = memory_limit(root)
    return Environment(
        cpu=cpu_model(root),
        architecture=platform.machine(),
        logical_cpus=os.cpu_count() or 1,
        physical_cpus=psutil.cpu_count(logical=False),
        allowed_cpus=allowed_cpus(),
        cpu_limit=cpu_limit(root),
        governor=text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        max_mhz=_max_mhz(root),
        memory_mib=psutil.virtual_memory().total >> 20,
        memory_limit_mib=None if limit is None else limit >> 20,
        gpus=Gpus(root).names(),
        battery=_on_battery(),
        system=_system(),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=versions(),
    )


def identity(machine: Environment) -> dict[str, Any]:
    """What has to be equal before figures may be compared, as JSON: processors and software."""
    parts = machine.model_dump(mode="json")
    return {key: parts[key] for key in ("cpu", "architecture", "gpus", "python", "packages")}


def load_average() -> tuple[float, float, float]:
    """Load average over 1, 5 and 15 minutes."""
    one, five, fifteen = os.getloadavg()
    return round(one, 2), round(five, 2), round(fifteen, 2)


def disturbances(machine: Environment, load: Load, threads: int) -> Iterator[str]:
    """What in the machine's state may have disturbed the figures, one sentence for each."""
    others = load.before[0]
    if others > 0.25 * machine.allowed_cpus:
        yield (
            f"other processes were busy when the benchmark began (load average {others:.2f} on "
            f"{machine.allowed_cpus} CPUs): absolute times are too high, ratios less so"
        )
    if machine.cpu_limit is not None and machine.cpu_limit < threads:
        yield (
            f"{threads} threads share the {machine.cpu_limit:g} CPUs that this container may use: "
            "calls were throttled"
        )
    if machine.governor not in (None, "performance"):
        yield f"the CPU's clock governor is {machine.governor!r}: clocks may have changed"
    if machine.battery:
        yield "the machine ran on battery: clocks may have been lowered"


def _on_battery() -> bool:
    """Whether the power cable is known to be out: a battery that is full or kept from charging
    doesn't always tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError):  # another system, or a kernel without power supplies
        return False
    return battery is not None and battery.power_plugged is False


def _max_mhz(root: Path) -> float | None:
    khz = number(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return None if khz is None else khz / 1000


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
