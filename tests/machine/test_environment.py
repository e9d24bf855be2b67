"""What is recorded of the machine, and what must not be."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from lorkd_deploy.machine.environment import Load, disturbances, environment


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
