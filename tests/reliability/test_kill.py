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


def test_of_a_studys_table_the_latencies_alone_may_differ_and_half_a_file_is_seen(
    tmp_path: Path,
) -> None:
    def found(name: str, text: str) -> dict[str, bytes]:
        (tmp_path / name).write_text(text)
        return kill.contents(tmp_path, (name,))

    table = "methods.csv", "method,auc,latency_ms\nmtl,0.75,1.5\n"
    wanted = found(*table)
    assert found(table[0], table[1].replace("1.5", "2.25")) == wanted
    assert found(table[0], table[1].replace("0.75", "0.5")) != wanted
    assert all(found(table[0], table[1][:end]) != wanted for end in range(len(table[1])))
    assert found("tasks.csv", "task,auc\neye,0.5\n") != found("tasks.csv", "task,auc\neye,0.7\n")


@pytest.mark.parametrize(
    ("text", "said"), [('{"a": 1}\n', ""), ('{"a": ', "a.json is half-written")]
)
def test_half_a_document_is_seen_though_no_two_are_equal(
    tmp_path: Path, text: str, said: str
) -> None:
    def command(at: Path) -> list[str]:
        (at / "a.json").write_text(text)
        return ["--version"]

    (tmp_path / "start").mkdir()
    stage = stages.Stage(command, ("a.json",), varies=(".json",))
    wrong = kill.trial(stage, tmp_path / "start", tmp_path / "trial", 60, {"a.json": b"{}"})
    assert wrong.startswith(said) and bool(wrong) == bool(said)


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
