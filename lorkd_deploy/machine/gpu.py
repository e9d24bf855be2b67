"""NVIDIA GPUs through the driver's NVML: which there are, what they do, hold and use.

Tested with a stand-in for NVML, since there is not always a GPU.
https://docs.nvidia.com/deploy/nvml-api
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lorkd_deploy.machine.kernel import text
from lorkd_deploy.machine.memory import MIB

# nvmlClocksEventReasons that are no choice of ours: power brake, thermal slow-downs, power cap.
SLOWED = {
    0x4: "power cap",
    0x8: "hardware slow-down",
    0x20: "software thermal slow-down",
    0x40: "hardware thermal slow-down",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuState:
    """Clock of the multiprocessors in MHz, degrees Celsius, and what slows the GPU, in words."""

    mhz: float | None = None
    celsius: float | None = None
    slowed: str | None = None


class Gpus:
    """Every GPU that the driver lists; `absent` says why there is none, else it is None.

    On a Jetson memory is `unified`: the GPU has none of its own, and what an engine takes there
    is resident memory and buffers of the driver that no process is charged with. Both show as a
    fall of the machine's `available` memory, beside what other processes took meanwhile.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        import pynvml

        self.unified = is_jetson(root)
        self.absent: str | None = None
        self._nvml: Any = pynvml
        self._gpus: list[Any] = []
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError as exc:
            self.absent = f"NVML finds no GPU ({exc})"
            return
        if not self._gpus:
            self.absent = "NVML finds no GPU"

    @property
    def memory_source(self) -> str:
        """What tells the GPU's memory, or why nothing does."""
        if self.unified:
            return "MemAvailable of /proc/meminfo (unified memory)"
        if self.absent:
            return f"not measured: {self.absent}"
        return "NVML, the process's compute contexts"

    def names(self) -> tuple[str, ...]:
        """Name, driver and memory of each GPU, `NVIDIA A2, 570.86.15, 15356 MiB`."""
        nvml = self._nvml
        driver = self._told(nvml.nvmlSystemGetDriverVersion)
        found = []
        for gpu in self._gpus:
            memory = self._told(nvml.nvmlDeviceGetMemoryInfo, gpu)
            parts = (
                self._told(nvml.nvmlDeviceGetName, gpu),
                driver,
                f"{memory.total // MIB} MiB" if memory else None,
            )
            found.append(", ".join(part for part in parts if part))
        return tuple(found)

    def memory(self, pid: int) -> float | None:
        """MiB of GPU memory that the process holds; None where the driver doesn't tell.

        In a container the driver may list processes by the host's ids: then it doesn't.
        """
        found = None
        for gpu in () if self.unified else self._gpus:
            for process in self._told(self._nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or ():
                if process.pid == pid and process.usedGpuMemory is not None:
                    found = (found or 0.0) + process.usedGpuMemory / MIB
        return found

    def available(self) -> float | None:
        """The machine's available memory where it is unified, MiB; None elsewhere."""
        if not self.unified:
            return None
        return float(psutil.virtual_memory().available / MIB)

    def state(self) -> GpuState:
        """What the first GPU does now; what it doesn't tell is None."""
        if not self._gpus:
            return GpuState()
        nvml, gpu = self._nvml, self._gpus[0]
        mask = self._told(nvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        return GpuState(
            self._told(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            self._told(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            None if mask is None else slowed(mask),
        )

    def joules(self) -> float:
        """Energy of all GPUs together since the driver was loaded.

        Raises `OSError` where there is no GPU, or one that doesn't count it.
        """
        spent = [
            self._told(self._nvml.nvmlDeviceGetTotalEnergyConsumption, gpu) for gpu in self._gpus
        ]
        if not spent or None in spent:
            raise OSError("no GPU here counts its energy")
        return float(sum(spent)) / 1000  # of millijoules

    def _told(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except self._nvml.NVMLError:
            return None


def slowed(reasons: int) -> str | None:
    """The reasons of a bit mask that slow a GPU against our will, in words."""
    return ", ".join(name for bit, name in SLOWED.items() if reasons & bit) or None


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is one of NVIDIA's boards with memory that CPU and GPU share."""
    model = text(root / "proc/device-tree/model") or ""
    return (root / "etc/nv_tegra_release").is_file() or "jetson" in model.lower()
