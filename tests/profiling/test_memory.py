"""Memory on the GPU, on a Jetson, of all departments together; files that the system forgets."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import benchmark, report
from lorkd_deploy.machine.gpu_memory import is_jetson, open_gpu_memory
from lorkd_deploy.machine.memory import proportional, resident
from lorkd_deploy.machine.nvml import GpuState, Nvml, slowed
from lorkd_deploy.machine.page_cache import cached, forget, mapped_files
from lorkd_deploy.schema import document_bytes

WARM = "day/warm/trial-fp32"
COLD = "night/cold/trial-fp32"
Hospital = Any  # the fixture's class, in conftest.py


class FakeNvml(SimpleNamespace):
    """Two GPUs of which the second one knows nothing, as `pynvml` shows them."""

    class NVMLError(Exception):
        pass

    def __init__(self, *processes: tuple[int, int | None], count: int = 2) -> None:
        super().__init__(
            NVML_CLOCK_SM=1,
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

    def _processes(self, gpu: int) -> list[SimpleNamespace]:
        if gpu:
            raise self.NVMLError("not supported")
        return [SimpleNamespace(pid=p, usedGpuMemory=used) for p, used in self.processes]


def test_gpu_memory_of_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeNvml((7, 300 << 20), (8, 5 << 20), (9, None))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = open_gpu_memory(tmp_path)
    assert "NVML" in found.source and found.available() is None
    assert [found.of(pid) for pid in (7, 8, 9, 10)] == [300, 5, None, None]
    assert Nvml().state() == GpuState(1410, 61, "hardware thermal slow-down")
    assert slowed(0x1) is None  # idle is nobody's fault


def test_what_cannot_be_read_of_a_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = open_gpu_memory(tmp_path)
    why = "nvidia-ml-py is not installed (pip install 'lorkd-deploy[gpu]')"
    assert found.source == f"not measured: {why}"
    assert found.of(os.getpid()) is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(count=0))
    assert "NVML finds no GPU" in open_gpu_memory(tmp_path).source
    assert Nvml().state() == GpuState()


def test_a_jetson_shares_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 7 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setitem(sys.modules, "jtop", None)
    found = open_gpu_memory(tmp_path)
    assert is_jetson(tmp_path) and not is_jetson(tmp_path / "proc")
    assert found.available() == 2.0 and found.of(7) is None
    assert "jetson-stats is not installed" in found.source

    row = [7, "user", "I", "Graphic", 20, "R", 3.1, 90_000, 51_200, "python3"]
    closed: list[bool] = []
    client = SimpleNamespace(start=lambda: None, processes=[row], close=lambda: closed.append(True))
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=lambda: client))
    found = open_gpu_memory(tmp_path)
    assert found.of(7) == 50 and found.of(8) is None
    assert found.source.startswith("jetson-stats")
    assert closed == []
    del found
    gc.collect()
    assert closed == [True]


def test_what_the_runtimes_allocator_holds_is_that_of_the_smallest_batch(
    hospital: Hospital,
) -> None:
    hospital.engine("warm", np.eye(3)[:, :2], allocated=48)
    profile = benchmark(hospital.run, teacher=False, rounds=2, seconds=0.001, iterations=1)
    assert [timing.batch for timing in profile.engine(WARM).timings] == [1, 4]
    assert profile.engine(WARM).memory.allocator.rounds == (48, 48)
    assert profile.engine(COLD).memory.allocator is None
    text = report(hospital.run).markdown.read_text()
    assert "| Runtime's allocator |" in text and "| 48.0 MiB (48.0 to 48.0) |" in text


def test_proportional_memory_is_no_more_than_resident(tmp_path: Path) -> None:
    share, peak = proportional(), resident().peak
    assert share is not None and peak is not None and 0 < share <= peak + 1
    assert proportional(tmp_path / "none") is None


def test_all_departments_on_one_machine(hospital: Hospital) -> None:
    for task, classes in hospital.tasks.items():
        hospital.engine(task, np.eye(3)[:, :classes], mib=128)
    profile = benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    (found,) = profile.together
    assert found.engines == (WARM, COLD)
    assert found.bytes == sum(profile.engine(name).bytes for name in found.engines)
    # Each alone holds its 128 MiB and Python; in one process Python is there once.
    assert 2 * 128 < found.apart_shared < found.apart
    assert 2 * 128 < found.one_process < found.apart - 5
    assert 120 < found.one_process - found.one_engine < 192
    alone = benchmark(hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1)
    assert alone.together == ()


def test_the_kernel_forgets_a_file_and_is_asked_whether_it_did(tmp_path: Path) -> None:
    file = tmp_path / "engine.bin"
    file.write_bytes(os.urandom(3 << 20))
    with file.open("rb") as stream:
        assert cached(stream.fileno(), 3 << 20) > 0  # all of it, unless memory is short
    gone = forget([file, tmp_path / "absent"])
    if gone == 0:
        pytest.skip("this file system keeps its files in memory")
    with file.open("rb") as stream:
        still = cached(stream.fileno(), 3 << 20)
    assert gone > 0.9 and still < 0.1 * (3 << 20)  # a page that is in use elsewhere stays
    assert forget([tmp_path / "absent"]) is None


def test_mapped_files_are_listed(tmp_path: Path) -> None:
    assert any("libc" in name for name in mapped_files())
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r--p 0000 08:01 42   /usr/lib/libx.so\n"
        "7f01-7f02 r--p 0000 08:01 43   /tmp/gone.so (deleted)\n"
        "7f02-7f03 rw-p 0000 00:00 0\n7ffd-7ffe rw-p 0000 00:00 0   [stack]\n"
    )
    assert mapped_files(maps) == ["/usr/lib/libx.so"]


def test_a_start_without_the_page_cache_is_measured_too(hospital: Hospital) -> None:
    quick = {"rounds": 2, "seconds": 0.001, "iterations": 1, "task": ["warm"], "teacher": False}
    cold = benchmark(hospital.run, **quick).engine(WARM).cold_start
    assert cold.uncached_load is None and cold.forgotten is None
    _set(hospital, "uncached", True)
    hospital.engine("warm", np.eye(3)[:, :2])
    profile = benchmark(hospital.run, **quick)
    cold = profile.engine(WARM).cold_start
    assert profile.protocol.uncached
    assert len(cold.uncached_process_to_first_answer.rounds) == 2
    assert 0 < cold.forgotten.median <= 1
    assert cold.uncached_process_to_first_answer.minimum > cold.uncached_load.minimum > 0


def _set(hospital: Hospital, key: str, value: object) -> None:
    import json

    file = hospital.run / "bundle" / "manifest.json"
    content = json.loads(file.read_text())
    content["recipe"]["benchmark"][key] = value
    file.write_bytes(document_bytes(content))
