"""What a container leaves of the machine, and what the processor is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorkd_deploy.machine import processor
from lorkd_deploy.machine.memory import memory_limit
from lorkd_deploy.machine.processor import cpu_limit, cpu_model, usable_cpus


def test_limits_of_a_container_version_2(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/box/inner"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text("1073741824\n")
    (group.parent / "memory.max").write_text("max\n")
    assert cpu_limit(tmp_path) == 1.5
    assert memory_limit(tmp_path) == 1 << 30


def test_limits_of_a_container_version_1(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/box\n2:memory:/box\n")
    cpu = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    memory = tmp_path / "sys/fs/cgroup/memory/box"
    cpu.mkdir(parents=True)
    memory.mkdir(parents=True)
    (cpu / "cpu.cfs_quota_us").write_text("50000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (memory / "memory.limit_in_bytes").write_text("536870912\n")
    (memory.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cpu_limit(tmp_path) == 0.5
    assert memory_limit(tmp_path) == 512 << 20


def test_no_limits(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) is None
    assert memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max", 4), ("150000", 1), ("250000", 2), ("50000", 1), ("800000", 4)],
)
def test_cpus_are_those_of_the_affinity_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, usable: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{quota} 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert usable_cpus(tmp_path) == usable
    assert processor.allowed_cpus() == 4


def test_a_board_without_a_cpu_name_gives_its_own(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd42\n")
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano\0")
    assert cpu_model(tmp_path) == "NVIDIA Jetson Orin Nano"
