"""kill -9 in the short form of `benchmarks/reliability/kill.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import children, kill, stages
from benchmarks.reliability.campaign import Campaign


@pytest.mark.slow
def test_a_kill_leaves_what_was_and_the_next_run_is_as_ever(start: Path, tmp_path: Path) -> None:
    campaign = Campaign("kill", seed=5, folder=tmp_path)
    kill.run(campaign, start, tmp_path, stages.SHORT, 5)
    assert campaign.faults == []
    assert campaign.counts == {name: {"fine": 1} for name in stages.SHORT}


def test_half_a_result_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "a.bin").write_bytes(b"before")
    stage = stages.Stage(lambda at: ["--version"], ("a.bin",))
    assert kill.trial(stage, tmp_path / "start", tmp_path / "a", 0, {"a.bin": b"before"}) == ""
    wrong = kill.trial(stage, tmp_path / "start", tmp_path / "b", 0, {"a.bin": b"after"})
    assert wrong == "other than undisturbed: a.bin"


def test_a_process_that_outlives_its_parent_is_seen() -> None:
    """In a process of its own: it becomes the parent of every orphan below it."""
    program = (
        "import subprocess; from benchmarks.reliability.children import adopt_orphans, orphans\n"
        "adopt_orphans()\n"
        "subprocess.run(['sh', '-c', 'sleep 60 & exit 0'])\n"
        "assert len(orphans(0.05, set())) == 1\n"
        "assert orphans(0.05, set()) == set()\n"
        "subprocess.run(['sh', '-c', 'sleep 0.1 & exit 0'])\n"
        "assert orphans(20, set()) == set()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_command_is_killed_by_its_cpu_time() -> None:
    ended = children.Child(["--help"]).kill_after(0)
    assert ended.code == -9
    whole = children.Child(["--version"]).wait()
    assert whole.code == 0 and whole.said.startswith("lorkd ") and whole.seconds > 0
