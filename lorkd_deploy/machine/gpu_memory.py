"""GPU memory of an engine's process: by NVML, and on a Jetson by what the whole machine loses.

A Jetson's GPU has no memory of its own: what an engine takes there is resident memory, and
buffers of the driver that no process is charged with. jetson-stats tells those where it is
installed; else the fall of `MemAvailable` from before the process to its end shows both together,
and whatever other processes took meanwhile.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorkd_deploy.machine.nvml import Nvml


@dataclass(frozen=True)
class GpuMemory:
    """How GPU memory can be read here: `source` names it, or says why it can't be."""

    source: str
    nvml: Nvml | None = None
    jetson: bool = False
    jtop: Any = None
    root: Path = Path("/")

    def of(self, pid: int) -> float | None:
        """MiB that the process holds on the GPU; None where that can't be read."""
        if self.jtop is not None:
            return _of_jtop(self.jtop, pid)
        return self.nvml.memory(pid) if self.nvml and not self.jetson else None

    def available(self) -> float | None:
        """`MemAvailable` of a Jetson, MiB; None elsewhere, where the GPU has its own memory."""
        return _available(self.root) if self.jetson else None


def open_gpu_memory(root: Path = Path("/")) -> GpuMemory:
    """Find out what can be read on this machine."""
    if is_jetson(root):
        jtop = _open_jtop()
        if jtop is not None:
            source = "jetson-stats, and MemAvailable of /proc/meminfo (unified memory)"
            found = GpuMemory(source, jetson=True, jtop=jtop, root=root)
            # It reads from its service in a thread, until whoever measures lets go of `found`.
            weakref.finalize(found, jtop.close)
            return found
        source = "MemAvailable of /proc/meminfo (unified memory; jetson-stats is not installed)"
        return GpuMemory(source, jetson=True, root=root)
    nvml = Nvml()
    if nvml.absent:
        return GpuMemory(f"not measured: {nvml.absent}")
    return GpuMemory("NVML, the process's compute contexts", nvml)


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is one of NVIDIA's boards with memory that CPU and GPU share."""
    if (root / "etc/nv_tegra_release").is_file():
        return True
    try:
        model = (root / "proc/device-tree/model").read_text(errors="replace")
    except OSError:
        return False
    return "jetson" in model.lower()


def _available(root: Path) -> float | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) / 1024 if found else None


def _open_jtop() -> Any:
    """jetson-stats' client, connected to its service, or None. Not run by us: no Jetson here."""
    try:
        from jtop import jtop

        client = jtop()
        client.start()
    except Exception:  # not installed, or its service isn't running: its own kinds of errors
        return None
    return client


def _of_jtop(client: Any, pid: int) -> float | None:
    """`processes` are rows [PID, …, GPU memory in KB, name] in jetson-stats 4."""
    for row in client.processes:
        if row[0] == pid:
            return float(row[-2]) / 1024
    return None
