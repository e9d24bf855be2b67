"""Figures that only some machines give: what it did meanwhile, energy, GPU and unified memory.

The profiles are the fixture's, with what such a machine would add written into their JSON.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.profiling.profile import PROFILE
from lorkd_deploy.reporting.report import ReportFiles, report
from lorkd_deploy.schema import document_bytes
from tests.reporting.run_folder import TASKS, build_run


def rewritten(run: Path, change: Any) -> ReportFiles:
    """The report of a small run whose `profile.json` was given to `change`."""
    build_run(run, tasks=TASKS[:1])
    file = run / "profile" / PROFILE
    profile = json.loads(file.read_text())
    change(profile)
    file.write_bytes(document_bytes(profile))
    return report(run)


def rows(files: ReportFiles, table: str) -> list[dict[str, str]]:
    """A table as its CSV file holds it."""
    (file,) = [file for file in files.tables if file.stem == table]
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def state(**known: object) -> dict[str, object]:
    empty = {"others": None, "throttled": None, "mhz": None, "celsius": None, "disturbed": False}
    return empty | known


def test_what_the_machine_did_meanwhile_is_shown(tmp_path: Path) -> None:
    def change(profile: dict[str, Any]) -> None:
        profile["protocol"] |= {"repeats": 3, "most_others": 0.1, "most_throttled": 0.01}
        teacher, expert = profile["engines"]
        teacher["conditions"] = [state(others=0.02), state(others=0.04), state(others=0.03)]
        expert["conditions"] = [
            state(others=0.5, throttled=0.02, pace=1.3, mhz=2400, celsius=71, slowdowns=0),
            state(others=0, throttled=0, pace=1.1, mhz=1200, celsius=96, slowdowns=3)
            | {"disturbed": True, "attempts": 4},
        ]

    files = rewritten(tmp_path / "run", change)
    teacher, expert = rows(files, "department-1-conditions")
    assert float(teacher["others_share"]) == pytest.approx(0.03)
    assert (teacher["mhz"], teacher["celsius"], teacher["throttled_share"]) == ("", "", "")
    assert (expert["mhz"], expert["celsius"], expert["slowdowns"]) == ("1800.0", "83.5", "3")
    assert float(expert["pace"]) == pytest.approx(1.2)
    assert (expert["attempts"], expert["disturbed"]) == ("5", "1")
    assert "gpu_mhz" not in expert  # no GPU was seen by any engine
    text = files.markdown.read_text()
    (line,) = [r for r in text.splitlines() if r.startswith("| Foundation model") and "3.0 %" in r]
    assert line.count("not readable here") == 5
    assert "1,800 MHz (1,200 to 2,400)" in text and "5 (for 2 rounds)" in text
    limit = "a CPU limit stopped it for more than 1 % of the time"
    pace = "a fixed piece of work took 20 % longer than in the median of the benchmark"
    assert f"{limit}, {pace}, a CPU slowed itself down for heat" in text
    assert "or the GPU was slowed (by heat or a cap on its power)" in text


def test_a_gpu_that_is_seen_has_its_columns(tmp_path: Path) -> None:
    def change(profile: dict[str, Any]) -> None:
        hot = {"gpu_slowed": "software thermal slow-down", "disturbed": True}
        gpu = {"gpu_mhz": 1980, "gpu_celsius": 61}
        profile["engines"][1]["conditions"] = [state(**gpu), state(**gpu) | hot]

    files = rewritten(tmp_path / "run", change)
    (expert,) = rows(files, "department-1-conditions")
    assert (expert["gpu_mhz"], expert["gpu_celsius"]) == ("1980.0", "61.0")
    assert expert["gpu_slowed"] == "software thermal slow-down"
    assert "software thermal slow-down" in files.html.read_text()


def spread(value: float) -> dict[str, object]:
    return {
        "median": value,
        "minimum": value - 1,
        "maximum": value + 1,
        "rounds": [value - 1, value, value + 1],
    }


def test_energy_gpu_allocator_and_unified_memory_in_every_form(tmp_path: Path) -> None:
    figures = {"gpu": 412.5, "allocator": 96.5, "unified": 733.5}

    def change(profile: dict[str, Any]) -> None:
        profile["protocol"] |= {
            "power": "RAPL package-0, NVML",
            "idle_watts": 41.5,
            "gpu_memory": "NVML, the process's compute contexts",
        }
        teacher, expert = profile["engines"]
        expert["joules"] = spread(7.25)
        expert["memory"] |= {name: spread(value) for name, value in figures.items()}
        expert["memory"]["gpu_source"] = "NVML, the process's compute contexts"
        teacher["memory"]["gpu_source"] = None

    files = rewritten(tmp_path / "run", change)
    teacher, expert = rows(files, "engines-table")[::2]  # at the smaller batch
    assert (teacher["joules"], expert["joules"]) == ("", "7.25")
    teacher, expert = rows(files, "department-1-memory")
    for name, value in figures.items():
        assert (teacher[f"{name}_mib"], expert[f"{name}_mib"]) == ("", str(value))

    text = files.markdown.read_text()
    cells = ("7.25 J (6.25 to 8.25)", "412 MiB (412 to 414)", "96.5 MiB (95.5 to 97.5)")
    for shown in (*cells, "734 MiB (732 to 734)"):
        assert f"| {shown} |" in text
    of_teacher = [line for line in text.splitlines() if line.startswith("| Foundation model")]
    gaps = [line.count("not measured here") for line in of_teacher]
    assert gaps.count(3) == 1  # neither of the three memories
    page = files.html.read_text()
    for title in ("Energy", "GPU memory", "Runtime&#39;s allocator", "Unified memory"):
        assert f">{title}<span" in page
    for value, unit in (("7.25", "J"), ("96.5", "MiB")):
        assert f">{value} {unit}</span>" in page
    for file in (text, page):
        assert "RAPL package-0, NVML; 41.5 W before the rounds, taken off every image" in file
        assert "GPU memory: NVML, the process" in file


def test_without_watched_rounds_there_is_no_such_table(tmp_path: Path) -> None:
    files = rewritten(tmp_path / "run", lambda profile: None)
    assert "department-1-conditions.csv" not in {file.name for file in files.tables}
