"""What NVML tells of a GPU, of none, and of a board that shares its memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lorkd_deploy.machine.gpu import Gpus, GpuState, is_jetson, slowed


class FakeNvml(SimpleNamespace):
    """Two GPUs of which the second one knows nothing, as `pynvml` shows them."""

    class NVMLError(Exception):
        pass

    def __init__(self, *processes: tuple[int, int | None], count: int = 2) -> None:
        super().__init__(
            NVML_CLOCK_SM=1,
            nvmlSystemGetDriverVersion=lambda: "570.86.15",
            nvmlDeviceGetName=lambda gpu: f"NVIDIA A{gpu}",
            nvmlDeviceGetMemoryInfo=self._memory,
            nvmlDeviceGetTotalEnergyConsumption=lambda gpu: 1500 + gpu,
            NVML_TEMPERATURE_GPU=0,
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: count,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetComputeRunningProcesses=self._processes,
            nvmlDeviceGetClockInfo=lambda gpu, _: 1410,
            nvmlDeviceGetTemperature=lambda gpu, _: 61,
            nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: 0x41,
        )
        self.processes = processes

    def fails(self, *_: object) -> None:
        raise self.NVMLError("library not found")

    def _memory(self, gpu: int) -> SimpleNamespace:
        if gpu:
            raise self.NVMLError("not supported")
        return SimpleNamespace(total=15356 << 20)

    def _processes(self, gpu: int) -> list[SimpleNamespace]:
        if gpu:
            raise self.NVMLError("not supported")
        return [SimpleNamespace(pid=p, usedGpuMemory=used) for p, used in self.processes]


def test_what_a_gpu_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeNvml((7, 300 << 20), (8, 5 << 20), (9, None))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = Gpus(tmp_path)
    assert "NVML" in found.memory_source and found.available() is None
    assert [found.memory(pid) for pid in (7, 8, 9, 10)] == [300, 5, None, None]
    assert found.state() == GpuState(1410, 61, "hardware thermal slow-down")
    assert found.names() == ("NVIDIA A0, 570.86.15, 15356 MiB", "NVIDIA A1, 570.86.15")
    assert found.joules() == 3.001
    assert slowed(0x1) is None  # idle is nobody's fault


@pytest.mark.parametrize("fault", ["no library", "no GPU"])
def test_without_a_gpu_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    fake = FakeNvml(count=0)
    if fault == "no library":
        fake.nvmlInit = fake.fails
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = Gpus(tmp_path)
    assert found.memory_source.startswith("not measured: NVML finds no GPU")
    assert ("library not found" in found.memory_source) == (fault == "no library")
    assert (found.names(), found.memory(os.getpid()), found.available()) == ((), None, None)
    assert found.state() == GpuState()
    with pytest.raises(OSError, match="no GPU here counts"):
        found.joules()


def test_a_gpu_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeNvml(count=1)
    for name in [name for name in vars(fake) if name.startswith("nvmlDeviceGet")]:
        if name not in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName"):
            setattr(fake, name, fake.fails)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = Gpus(tmp_path)
    assert (found.names(), found.memory(7)) == (("NVIDIA A0, 570.86.15",), None)
    assert found.state() == GpuState()
    with pytest.raises(OSError, match="counts its energy"):
        found.joules()


def test_a_jetson_shares_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml((7, 300 << 20)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 << 20))
    found = Gpus(tmp_path)
    assert is_jetson(tmp_path) and not is_jetson(tmp_path / "proc")
    assert found.available() == 2.0 and found.memory(7) is None
    assert "unified memory" in found.memory_source
