"""What of the machine bears on a measured figure. No host name, no user, no path."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lorkd_deploy.machine.processor import cpu_model
from lorkd_deploy.schema import Part

PACKAGES = (
    "lorkd-deploy",
    "numpy",
    "pillow",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "torchvision",
    "timm",
)
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as nearly 2^63 bytes


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
    memory = memory_limit(root)
    return Environment(
        cpu=cpu_model(root),
        architecture=platform.machine(),
        logical_cpus=os.cpu_count() or 1,
        physical_cpus=psutil.cpu_count(logical=False),
        allowed_cpus=allowed_cpus(),
        cpu_limit=cpu_limit(root),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        max_mhz=_max_mhz(root),
        memory_mib=psutil.virtual_memory().total >> 20,
        memory_limit_mib=None if memory is None else memory >> 20,
        gpus=gpus(),
        battery=_on_battery(),
        system=_system(),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=packages(),
    )


def identity(machine: Environment) -> dict[str, Any]:
    """What has to be equal before figures may stand together, as JSON: processors and software."""
    parts = machine.model_dump(mode="json")
    return {key: parts[key] for key in ("cpu", "architecture", "gpus", "python", "packages")}


def allowed_cpus() -> int:
    """How many logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control-group folder and those above it, versions 2 and 1."""
    mounted = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        # Inside a container the group's own name is often not mounted: its limits are at the top.
        folder = top / place.strip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def cpu_limit(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that control groups (a container) allow; None: no limit."""
    limits = []
    for folder in groups(root, "cpu"):
        quota, period = ([*(_text(folder / "cpu.max") or "max").split(), "100000"])[:2]
        if quota != "max":
            limits.append(int(quota) / int(period))
        old = int(_text(folder / "cpu.cfs_quota_us") or -1)
        if old > 0:
            limits.append(old / int(_text(folder / "cpu.cfs_period_us") or 100000))
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that control groups allow; None: no limit."""
    limits = []
    for folder in groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text and text != "max" and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits, default=None)


def gpus() -> tuple[str, ...]:
    """NVIDIA GPUs by name, driver and memory, as `nvidia-smi` lists them."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def packages() -> dict[str, str]:
    """Versions of the installed packages that have a part in the figures."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> tuple[float, float, float]:
    """Load average over 1, 5 and 15 minutes."""
    one, five, fifteen = os.getloadavg()
    return round(one, 2), round(five, 2), round(fifteen, 2)


def disturbances(machine: Environment, load: Load, threads: int) -> Iterator[str]:
    """What of the machine's state may have disturbed the figures, a sentence each."""
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
    text = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return None if text is None else int(text) / 1000


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return None
