"""Joules an image, from a counter to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import benchmark, report
from lorkd_deploy.machine.power import open_power
from lorkd_deploy.profiling.rounds import measure as measuring
from tests.machine.test_power import NO_GPU, package

Hospital = Any  # the fixture's class, in conftest.py


@pytest.mark.slow
def test_joules_an_image_from_the_counter_to_the_report(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = package(tmp_path / "machine", "intel-rapl:0", "package-0", 5_000_000)
    hospital.engine("warm", np.eye(3)[:, :2], counter=str(counter))
    # Without the GPUs of the machine that runs the test.
    machine = open_power(NO_GPU, tmp_path / "machine", seconds=0.01)
    monkeypatch.setattr(measuring, "open_power", lambda _: machine)

    profile = benchmark(hospital.run, rounds=1)
    assert profile.protocol.power == "RAPL package-0"
    assert profile.protocol.idle_watts == 0  # nothing moved the counter before the rounds
    found = {engine.engine: engine.joules for engine in profile.engines}
    burning, idle = found["day/warm/trial-fp32"], found["night/cold/trial-fp32"]
    assert burning is not None and idle is not None
    assert burning.rounds == pytest.approx((1,))  # warm-up calls burn, and are counted, too
    assert idle.rounds == (0,)

    files = report(hospital.run)
    (table,) = [file for file in files.tables if file.stem == "engines-table"]
    assert "joules" in table.read_text().splitlines()[0].split(",")
    assert "| 1.00 J |" in files.markdown.read_text()
    assert "RAPL package-0; 0 W before the rounds" in files.html.read_text()
