"""Energy: counters as the kernel writes them, wraps, idle power, and none invented."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import benchmark, report
from lorkd_deploy.machine import power
from lorkd_deploy.machine.power import NO_SOURCE, Meter, Power, Reading, meters, open_power
from lorkd_deploy.machine.rails import Integrator, rails
from lorkd_deploy.profiling import measuring

Hospital = Any  # the fixture's class, in conftest.py


def package(root: Path, zone: str, name: str, microjoules: int) -> Path:
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def rapl(root: Path) -> list[Meter]:
    """Without the GPUs of the machine that runs the test."""
    return [meter for meter in meters(root) if meter.name != "NVML"]


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
    found = open_power(tmp_path, seconds=0.01)
    assert "RAPL package-0" in found.source
    assert found.idle >= 0


def test_without_a_counter_nothing_is_invented() -> None:
    power = Power((), 0.0)
    assert power.now() is None
    assert power.above_idle(None, images=1) is None
    assert power.source == NO_SOURCE


def jetson(root: Path, *channels: tuple[str, int, int]) -> None:
    """INA3221 channels: a label, millivolts and milliamperes each."""
    folder = root / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina3221\n")
    for number, (label, volts, amperes) in enumerate(channels, 1):
        (folder / f"in{number}_label").write_text(f"{label}\n")
        (folder / f"in{number}_input").write_text(f"{volts}\n")
        (folder / f"curr{number}_input").write_text(f"{amperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")


def test_a_jetsons_rails_are_summed_up_over_time(tmp_path: Path) -> None:
    jetson(tmp_path, ("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 400))
    (meter,) = [meter for meter in meters(tmp_path) if meter.name != "NVML"]
    assert meter.name == "rail VDD_IN"  # it feeds the others, which are not counted twice
    # Each reading lies between two of the clock's: however long one of them is held up.
    earliest, before, after = time.monotonic(), meter.read(), time.monotonic()
    time.sleep(0.1)
    until, spent, latest = time.monotonic(), meter.read() - before, time.monotonic()
    assert 5.0 * (until - after) <= spent <= 5.0 * (latest - earliest)


def test_without_a_rail_for_all_every_rail_counts(tmp_path: Path) -> None:
    jetson(tmp_path, ("VDD_GPU_SOC", 19_000, 100), ("VDD_CPU_CV", 19_000, 200))
    assert [(rail.name, rail.watts()) for rail in rails(tmp_path)] == [
        ("VDD_GPU_SOC", pytest.approx(1.9)),
        ("VDD_CPU_CV", pytest.approx(3.8)),
    ]


def test_a_reading_that_fails_is_spanned_by_the_next() -> None:
    readings = iter([2.0, OSError("busy"), 4.0, 4.0])

    def watts() -> float:
        value = next(readings)
        if isinstance(value, OSError):
            raise value
        return value

    meter = Integrator(watts, every=1000)
    time.sleep(0.05)
    with pytest.raises(OSError, match="busy"):
        meter.joules()
    assert meter.joules() >= 3.0 * 0.05


def test_joules_an_image_from_the_counter_to_the_report(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = package(tmp_path / "machine", "intel-rapl:0", "package-0", 5_000_000)
    hospital.engine("warm", np.eye(3)[:, :2], counter=str(counter))
    machine = partial(open_power, tmp_path / "machine", seconds=0.01)
    monkeypatch.setattr(measuring, "open_power", machine)
    monkeypatch.setattr(power, "_nvml", lambda: None)  # of the machine that runs the test

    profile = benchmark(hospital.run, rounds=1)
    assert profile.protocol.power == "RAPL package-0"
    assert profile.protocol.idle_watts == 0  # nothing moved the counter before the rounds
    found = {engine.engine: engine.joules for engine in profile.engines}
    burning, idle = found["day/warm/trial-fp32"], found["night/cold/trial-fp32"]
    assert burning is not None and idle is not None
    assert burning.rounds == pytest.approx((1,))  # warm-up calls burn, and are counted, too
    assert idle.rounds == (0,)

    files = report(hospital.run)
    (table,) = [file for file in files.tables if file.stem == "department-1-engines"]
    assert table.read_text().splitlines()[0].endswith(",joules")
    assert "| 1.00 J |" in files.markdown.read_text()
    assert "RAPL package-0; 0 W before the rounds" in files.html.read_text()
