"""Damaged files in the short form of `benchmarks/reliability/fuzz.py`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from benchmarks.reliability import fuzz, inputs
from benchmarks.reliability.campaign import Campaign


def test_damaged_files_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = inputs.kinds(tmp_path, torch=find_spec("torch") is not None)
    campaign = Campaign("fuzz", seed=3, folder=tmp_path)
    fuzz.run(campaign, found, tmp_path, fuzz.DRAWN)
    assert campaign.faults == []
    assert campaign.counts.keys() == found.keys()
    assert all(campaign.done(name) == fuzz.DRAWN for name in found)


def _crashes(data: bytes) -> object:
    os.abort()


def _breaks(data: bytes) -> object:
    raise KeyError(len(data))


def _strays(data: bytes) -> object:
    return os.system("true")


def _fills(data: bytes) -> object:
    return bytearray(2 * fuzz.MEMORY)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [(_crashes, "crashed"), (_breaks, "traceback"), (_strays, "strayed"), (_fills, "too large")],
)
def test_a_fault_is_counted_as_one(tmp_path: Path, read: object, outcome: str) -> None:
    campaign = Campaign("fuzz", seed=0, folder=tmp_path)
    kind = inputs.Kind((b"whole",), read)  # type: ignore[arg-type]
    fuzz.run(campaign, {"bad": kind}, tmp_path, 1)
    assert campaign.counts == {"bad": {outcome: 1 if outcome == "crashed" else fuzz.DRAWN}}
    assert campaign.faults[0]["file"]
