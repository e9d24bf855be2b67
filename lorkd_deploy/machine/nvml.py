"""The GPU through NVIDIA's NVML, where the package nvidia-ml-py (`pynvml`) is installed.

Written against its documentation and, without a GPU here, not run by this project's own tests but
for a stand-in. https://docs.nvidia.com/deploy/nvml-api
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INSTALL = "pip install 'lorkd-deploy[gpu]'"
MIB = 1 << 20
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


class Nvml:
    """Every GPU that the driver lists; `absent` says why there is nothing to read, else None."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._gpus: list[Any] = []
        self.absent: str | None = None
        try:
            import pynvml
        except ImportError:
            self.absent = f"nvidia-ml-py is not installed ({INSTALL})"
            return
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError as exc:
            self.absent = f"NVML finds no GPU ({exc})"
            return
        self._nvml = pynvml
        if not self._gpus:
            self.absent = "NVML finds no GPU"

    def memory(self, pid: int) -> float | None:
        """MiB of GPU memory that the process holds; None where the driver doesn't tell.

        In a container the driver may list processes by the host's ids: then it doesn't.
        """
        found = None
        for gpu in self._gpus:
            try:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
            except self._nvml.NVMLError:
                continue
            for process in processes:
                if process.pid == pid and process.usedGpuMemory is not None:
                    found = (found or 0.0) + process.usedGpuMemory / MIB
        return found

    def state(self) -> GpuState:
        """What the first GPU does now; what it doesn't tell is None."""
        if not self._gpus:
            return GpuState()
        nvml, gpu = self._nvml, self._gpus[0]
        # The newer name came with driver 535.
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(
            nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None
        )
        mask = self._told(reasons, gpu) if reasons else None
        return GpuState(
            self._told(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            self._told(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            None if mask is None else slowed(int(mask)),
        )

    def _told(self, read: Callable[..., Any], *arguments: Any) -> float | None:
        try:
            return float(read(*arguments))
        except self._nvml.NVMLError:
            return None


def slowed(reasons: int) -> str | None:
    """The reasons of a bit mask that slow a GPU against our will, in words."""
    return ", ".join(text for bit, text in SLOWED.items() if reasons & bit) or None
