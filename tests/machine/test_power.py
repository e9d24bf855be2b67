"""Energy: counters as the kernel writes them, wraps, idle power, and none invented."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.power import NO_SOURCE, Meter, Power, Reading, meters, open_power


def package(root: Path, zone: str, name: str, microjoules: int) -> Path:
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


NO_GPU = cast(Gpus, SimpleNamespace(joules=lambda: gpu_energy(None)))


def gpu_energy(joules: float | None) -> float:
    if joules is None:
        raise OSError
    return joules


def rapl(root: Path) -> list[Meter]:
    """Without the GPUs of the machine that runs the test."""
    return list(meters(NO_GPU, root))


def test_packages_are_read_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", "core", 3_000_000)
    package(tmp_path, "intel-rapl:1", "package-1", 7_500_000)
    found = rapl(tmp_path)
    assert [(meter.name, meter.read()) for meter in found] == [
        ("RAPL package-0", 5.0),
        ("RAPL package-1", 7.5),
    ]
    assert found[0].between(262_143.0, 1.0) == pytest.approx(1.32885)  # the counter began anew
    assert found[0].between(3.0, 10.0) == 7


def test_all_gpus_together_are_one_counter(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    gpus = cast(Gpus, SimpleNamespace(joules=lambda: gpu_energy(12.5)))
    assert [(meter.name, meter.read()) for meter in meters(gpus, tmp_path)] == [
        ("RAPL package-0", 5.0),
        ("NVML", 12.5),
    ]


def test_a_counter_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    assert rapl(tmp_path) == []


def test_energy_is_that_above_the_idle_machines() -> None:
    counter = iter([100.0])
    power = Power((Meter("trial", lambda: next(counter)),), idle=2.0)
    assert power.source == "trial"
    before = Reading(at=time.monotonic() - 10, joules=(40.0,))
    # 60 J in ten seconds, of which the idle machine would have used 20, for eight images.
    assert power.above_idle(before, images=8) == pytest.approx(5.0, rel=0.01)


def test_a_counter_that_vanishes_gives_no_joules_and_ends_nothing(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    (meter,) = rapl(tmp_path)
    power = Power((meter,), idle=0.0)
    before = power.now()
    assert before is not None and power.above_idle(before, images=1) == 0
    counter.unlink()
    assert power.above_idle(before, images=1) is None
    assert power.now() is None
    counter.write_text("busy\n")
    assert power.now() is None


def test_idle_power_is_measured(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", "package-0", 9)
    found = open_power(NO_GPU, tmp_path, seconds=0.01)
    assert "RAPL package-0" in found.source
    assert found.idle >= 0


def test_without_a_counter_nothing_is_invented() -> None:
    power = Power((), 0.0)
    assert power.now() is None
    assert power.above_idle(None, images=1) is None
    assert power.source == NO_SOURCE
