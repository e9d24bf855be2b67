"""What is recorded of the machine, and what must not be."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from lorkd_deploy.machine.environment import (
    Load,
    cpu_limit,
    disturbances,
    environment,
    memory_limit,
)
from lorkd_deploy.machine.memory import resident
from lorkd_deploy.machine.processor import cpu_model


def test_the_machine_is_recorded_without_names_and_paths() -> None:
    found = environment()
    assert found.python == platform.python_version()
    assert found.logical_cpus >= found.allowed_cpus >= 1
    assert found.memory_mib > 256
    assert found.packages["numpy"]
    text = found.model_dump_json()
    for secret in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert f'"{secret}' not in text and f" {secret} " not in text
    assert str(Path(__file__).parents[2]) not in text
    names = {getpass.getuser(), os.uname().nodename, socket.gethostname()}
    words = {word for value in leaves(found.model_dump()) for word in re.findall(r"[\w.-]+", value)}
    assert platform.python_version() in words  # the values are what is looked at
    assert not names & words


def leaves(value: Any) -> list[str]:
    """Every value in a document, as text."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [str(value)]


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


def test_a_board_without_a_cpu_name_gives_its_own(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd42\n")
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano\0")
    assert cpu_model(tmp_path) == "NVIDIA Jetson Orin Nano"


def test_what_disturbed_the_figures_is_said() -> None:
    quiet = environment().model_copy(
        update={"allowed_cpus": 4, "cpu_limit": None, "governor": None, "battery": False}
    )
    load = Load(before=(0.1, 0.1, 0.1), after=(1.0, 0.5, 0.2))
    assert list(disturbances(quiet, load, 1)) == []
    noisy = quiet.model_copy(update={"cpu_limit": 0.5, "governor": "powersave", "battery": True})
    busy = Load(before=(3.2, 0.1, 0.1), after=(4.0, 0.5, 0.2))
    said = " ".join(disturbances(noisy, busy, 2))
    for part in ("3.20", "0.5 CPUs", "powersave", "battery"):
        assert part in said


@pytest.mark.skipif(not psutil.LINUX, reason="the kernel's own files stand for the battery")
@pytest.mark.parametrize(
    ("files", "battery"),
    [
        ({"BAT0/status": "Discharging"}, True),
        ({"BAT0/status": "Charging"}, False),
        ({"BAT0/status": "Not charging"}, False),  # full, or kept at 80 %
        ({"BAT0/status": "Discharging", "AC/online": "1"}, False),
        ({"BAT0/status": "Charging", "AC/online": "0"}, True),
        ({"AC/online": "0"}, False),  # no battery
        ({}, False),
        (None, False),  # a kernel without power supplies
    ],
)
def test_a_battery_is_told_from_mains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str] | None, battery: bool
) -> None:
    supplies = tmp_path / "power_supply"
    if files is not None:
        supplies.mkdir()
    for name, text in (files or {}).items():
        (supplies / name).parent.mkdir(exist_ok=True)
        (supplies / name).write_text(f"{text}\n")
        if name.startswith("BAT"):
            (supplies / "BAT0/capacity").write_text("80\n")
    monkeypatch.setattr("psutil._pslinux.POWER_SUPPLY_PATH", str(supplies))
    assert environment().battery is battery


def test_resident_memory_grows_with_what_is_held() -> None:
    # In a process of its own: here, libraries' threads give memory back while the test runs.
    # 128 MiB are above glibc's largest threshold: mapped, and not cut from memory freed before.
    script = (
        "from lorkd_deploy.machine.memory import resident\n"
        "before = resident(); held = bytearray(b'x') * (128 << 20); after = resident()\n"
        "print(before.now, after.now, after.peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, after, peak = map(float, done.stdout.split())
    assert 120 < after - before < 140
    assert peak >= after


def test_a_kernel_that_does_not_tell_gives_none(tmp_path: Path) -> None:
    assert resident(tmp_path / "status").now is None
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  2048 kB\n")
    found = resident(tmp_path / "status")
    assert (found.now, found.peak) == (2.0, None)
