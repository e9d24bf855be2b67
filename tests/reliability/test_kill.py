"""kill -9 in the short form of `benchmarks/reliability/kill.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability import kill
from benchmarks.reliability.campaign import Campaign


def test_a_kill_leaves_what_was_and_the_next_run_is_as_ever(tmp_path: Path) -> None:
    campaign = Campaign("kill", seed=5, folder=tmp_path)
    kill.run(campaign, tmp_path, 8)
    assert campaign.faults == []
    assert {name: campaign.done(name) for name in kill.STAGES} == dict.fromkeys(kill.STAGES, 2)


def test_half_a_result_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "a.bin").write_bytes(b"before")
    stage = kill.Stage(lambda at: ["--version"], ("a.bin",))
    assert kill.trial(stage, tmp_path / "start", tmp_path / "a", 0, {"a.bin": b"before"}) == ""
    wrong = kill.trial(stage, tmp_path / "start", tmp_path / "b", 0, {"a.bin": b"after"})
    assert wrong == "other than undisturbed: a.bin"
