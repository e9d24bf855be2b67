"""Memory of this process and of another, as the kernel counts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lorkd_deploy.machine.memory import process_memory, resident


def test_resident_memory_grows_with_what_is_held() -> None:
    # In a process of its own: here, libraries' threads give memory back while the test runs.
    # 128 MiB are above glibc's largest threshold: mapped, and not cut from memory freed before.
    script = (
        "from lorkd_deploy.machine.memory import resident\n"
        "before = resident(); held = bytearray(b'x') * (128 << 20); after = resident()\n"
        "print(before.now, after.now, after.peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, after, peak = map(float, done.stdout.split())
    assert 120 < after - before < 140
    assert peak >= after


def test_a_kernel_that_does_not_tell_gives_none(tmp_path: Path) -> None:
    assert resident(tmp_path / "status").now is None
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  2048 kB\n")
    found = resident(tmp_path / "status")
    assert (found.now, found.peak) == (2.0, None)


def test_another_process_has_less_in_proportion_than_resident() -> None:
    waiting = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(waiting, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = process_memory(child.pid)
        child.communicate(b"\n")
    assert found.resident is not None and found.proportional is not None
    assert 0 < found.proportional <= found.resident + 1


def test_the_memory_of_a_process_that_may_not_be_read_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    found = process_memory(os.getpid())
    assert (found.resident, found.proportional) == (None, None)
