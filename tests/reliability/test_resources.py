"""Too little of everything, in the short form of `benchmarks/reliability/resources.py`."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from benchmarks.reliability import resources
from benchmarks.reliability.campaign import Campaign
from benchmarks.reliability.children import Ended, limited, memory


def test_too_little_is_a_sentence_and_works_afterwards(tmp_path: Path) -> None:
    campaign = Campaign("resources", seed=0, folder=tmp_path)
    trials = resources.Trials(campaign, tmp_path)
    at = trials.fresh(tmp_path / "at")
    trials.under("no disk", at, limited(resource.RLIMIT_FSIZE, 512))
    trials.under("no memory", at, memory(8))
    trials.under("afterwards", at)
    assert campaign.faults == []
    for name in resources.STAGES:
        assert campaign.counts[f"{name}, no disk"] == {"a sentence": 1}
        assert campaign.counts[f"{name}, afterwards"] == {"worked": 1}


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (Ended(0, "", 1), ""),
        (Ended(1, "error: the disk is full", 1), ""),
        (Ended(1, "Traceback (most recent call last)", 1), "a traceback"),
        (Ended(-11, "", 1), "ended by signal 11"),
        (Ended(70, "x", 1), "exit code 70"),
        (Ended(1, "", 1), "no word"),
    ],
)
def test_how_an_end_is_judged(ended: Ended, wrong: str) -> None:
    assert resources.judged(ended) == wrong
