"""Load in the short form of `benchmarks/reliability/load.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import load
from benchmarks.reliability.campaign import Campaign


def test_eight_threads_and_four_processes_get_their_own_answers(
    start: Path, tmp_path: Path
) -> None:
    campaign = Campaign("load", seed=0, folder=tmp_path)
    here = shutil.copytree(start, tmp_path / "start")
    load.at_once(campaign, here, tmp_path, 4)
    load.run(campaign, here, tmp_path, "onnx", 120)
    assert campaign.faults == []
    assert campaign.counts == {
        "4 processes at once": {"right": 4},
        "switches, onnx": {"right": 120},
    }
    opened = int(campaign.figures["switches, onnx"].split()[0])
    assert 8 < opened <= 120  # four tasks, and the budget is for one: they are opened anew
    campaign.write("Load", load.PROTOCOL)
    told = campaign.file.with_suffix(".md").read_text()
    assert f"- switches, onnx: {opened} engines were opened" in told
    assert Campaign("load", seed=0, folder=tmp_path).figures == campaign.figures


def test_another_experts_answer_is_seen(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shutil.copytree(start, tmp_path / "start")
    real = load.own_answers

    def swapped(*given: object) -> object:
        known = real(*given)  # type: ignore[arg-type]
        return known | {"eye": known["findings"]}

    monkeypatch.setattr(load, "own_answers", swapped)
    load.export(here / "run", task=["lung", "heart"])
    outcomes, _ = load.switched(here / "run", "onnx", 40)
    assert outcomes["right"] + outcomes["mixed"] == 40
    assert 0 < outcomes["mixed"] < 40


@pytest.mark.parametrize("growth", [0.0, 3.0])
def test_the_slope_of_memory_and_its_interval(growth: float) -> None:
    done = np.arange(400) * 25.0
    noise = np.random.default_rng(0).normal(size=400)
    early = np.where(done < 1500, 50, 0)  # what is there once for all is no slope
    found, low, high = load.slope(done, 100 + growth * done / 1000 / 1024 + 0.01 * noise - early)
    assert low < growth < high and low < found < high
    assert high - low < 3
