"""The campaign of flips in its short form; `benchmarks/reliability/flip.py` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability import flip
from benchmarks.reliability.campaign import Campaign


@pytest.mark.slow
def test_no_flipped_bit_is_missed(tmp_path: Path) -> None:
    parts = flip.material(tmp_path)
    campaign = Campaign("flip", seed=1, folder=tmp_path)
    flip.run(campaign, parts, 60)
    assert campaign.faults == []
    assert all(of.keys() <= {"found", "no effect"} for of in campaign.counts.values())
    assert sum(of.get("found", 0) for of in campaign.counts.values()) > 50
    again = Campaign("flip", seed=1, folder=tmp_path)  # goes on where it was stopped
    flip.run(again, parts, 70)
    assert sum(map(again.done, again.counts)) == 70


def test_a_missed_one_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "unprotected"
    file.write_bytes(b"values")
    campaign = Campaign("flip", seed=0, folder=tmp_path)
    flip.run(campaign, {"unprotected": flip.Part((file,), file.read_bytes)}, 3)
    assert campaign.counts == {"unprotected": {"missed": 3}}
    assert len(campaign.faults) == 3
