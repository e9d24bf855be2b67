"""Load in the short form of `benchmarks/reliability/load.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import growth, load
from benchmarks.reliability.campaign import Campaign
from benchmarks.reliability.children import apart
from benchmarks.reliability.growth import Slope, in_rounds


def test_eight_threads_and_four_processes_get_their_own_answers(
    start: Path, tmp_path: Path
) -> None:
    campaign = Campaign("load", seed=0, folder=tmp_path)
    here = shutil.copytree(start, tmp_path / "start")
    load.at_once(campaign, here, tmp_path, 4)
    load.run(campaign, here, "onnx", 120)
    assert not [fault for fault in campaign.faults if fault["outcome"] != "memory grows"]
    assert campaign.counts == {
        "4 processes at once": {"right": 4},
        "switches, onnx": {"right": 120},
    }
    opened = int(campaign.figures["switches, onnx"].split()[0])
    assert 8 < opened <= 120  # four tasks, and the budget is for one: they are opened anew
    campaign.write("Load", load.PROTOCOL)
    told = campaign.file.with_suffix(".md").read_text()
    assert f"- switches, onnx: {opened} engines opened and closed" in told
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
    ours = load.switched(here / "run", "onnx", 40, rounds=20)
    assert ours.outcomes["right"] + ours.outcomes["mixed"] == 40
    assert 0 < ours.outcomes["mixed"] < 40
    campaign = Campaign("load", seed=0, folder=tmp_path)
    load.judge(campaign, "switches, onnx", ours, ours)
    assert [fault["outcome"] for fault in campaign.faults] == ["mixed"]


@pytest.mark.parametrize("growing", [0.0, 3.0])
def test_the_slope_of_memory_and_its_interval(growing: float) -> None:
    done = np.arange(400) * 25.0
    noise = np.random.default_rng(0).normal(size=400)
    early = np.where(done < 1500, 50, 0)  # what is there once for all is no slope
    found = growth.slope(done, 1e5 + growing * done / 1000 + 10 * noise - 1024 * early)
    low, high = found.interval
    assert low < growing < high and low < found.kib < high
    assert high - low < 3


def test_memory_that_is_lost_is_a_fault_and_the_runtimes_own_is_not(tmp_path: Path) -> None:
    # In processes of their own: what this one has freed before would be taken first.
    lost, garbage = apart(_lost), apart(_garbage)
    assert lost.kib == pytest.approx(4096, rel=0.1) and lost.grows
    assert garbage.kib < lost.kib / 4  # the same blocks; what stays is the C library's, by threads
    campaign = Campaign("load", seed=0, folder=tmp_path)
    ours = load.Load({"right": 4000}, 4000, lost, 90.0, 1.0)
    load.judge(campaign, "switches, onnx", ours, ours._replace(slope=Slope(3.0, 20.0)))
    assert [fault["outcome"] for fault in campaign.faults] == ["memory grows"]
    again = Campaign("load", seed=1, folder=tmp_path)
    load.judge(again, "switches, onnx", ours, ours)  # the control loses as much
    assert again.faults == []


def _lost() -> Slope:
    kept: list[bytearray] = []
    return in_rounds(lambda _: kept.append(bytearray(4096)), 4000, lambda: len(kept), rounds=20)


def _garbage() -> Slope:
    times = iter(range(20))
    return in_rounds(_ring, 4000, lambda: 200 * next(times), rounds=20)


def _ring(_: int) -> None:
    """What waits for the collector, as a JSON encoder's closures do."""
    ring: list[object] = [bytearray(4096)]
    ring.append(ring)


def test_what_cannot_be_told_from_the_smallest_object_is_no_growth() -> None:
    assert not Slope(40.0, 12.0).grows  # 14 to 66
    assert Slope(40.0, 8.0).grows
    assert (Slope(5.0, 3.0) - Slope(1.0, 4.0)) == Slope(4.0, 5.0)
