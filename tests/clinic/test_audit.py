"""The log's chain under everything that may happen to a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy import cli
from lorkd_deploy.clinic.audit import AuditLog, verify_log
from lorkd_deploy.clinic.audit_chain import START
from lorkd_deploy.errors import GateError, LorkdError

FORK = multiprocessing.get_context("fork")


def logged(path: Path, lines: int = 5, **options: Any) -> Path:
    log = AuditLog(path, **options)
    for number in range(lines):
        log.append({"image": f"{number:064x}", "label": "Kälte"})
    return path


def test_each_line_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    path = logged(tmp_path / "new" / "log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["previous"] for line in lines] == [START, *(e["sha256"] for e in lines[:-1])]
    found = verify_log(path)
    assert (found.lines, found.last, found.torn) == (5, lines[-1]["sha256"], False)
    logged(path, 1)  # another process goes on with it
    assert verify_log(path).lines == 6


@pytest.mark.parametrize("change", ["changed", "removed", "reordered", "added", "garbled"])
def test_what_was_done_to_a_line_is_found_where_it_was_done(tmp_path: Path, change: str) -> None:
    path = logged(tmp_path / "log.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    if change == "changed":
        lines[2] = lines[2].replace("Kälte", "Wärme")
    elif change == "removed":
        del lines[2]
    elif change == "reordered":
        lines[2], lines[3] = lines[3], lines[2]
    elif change == "added":
        lines.insert(2, lines[1])
    else:
        lines[2] = lines[2][:20] + "\n"
    path.write_text("".join(lines))
    with pytest.raises(GateError, match="the chain is broken") as raised:
        verify_log(path)
    assert raised.value.where == f"{path}, line 3"
    assert cli.main(["audit", "verify", str(path)]) == 3


def test_a_rotated_log_is_one_chain_and_a_lost_file_is_found(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", 12, rotate=700)
    files = sorted(file.name for file in tmp_path.glob("log.jsonl*"))
    assert len(files) > 2
    found = verify_log(path)
    assert found.lines == 12
    assert [Path(f).name for f in found.files] == [*files[1:], "log.jsonl"]
    (tmp_path / "log.jsonl.1").rename(tmp_path / "elsewhere")
    with pytest.raises(GateError, match="a line before this one is missing"):
        verify_log(path)


def test_two_writers_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writers = [FORK.Process(target=logged, args=(path, 40)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert verify_log(path).lines == 80


def test_a_writer_that_is_killed_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = FORK.Process(target=logged, args=(path, 10**6))
    writer.start()
    while not path.exists() or path.stat().st_size < 3000:
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    whole = verify_log(path).lines
    with path.open("ab") as stream:
        stream.write(b'{"image": "half a li')  # what a kill in the middle of a write leaves
    assert verify_log(path).torn
    logged(path, 1)
    found = verify_log(path)
    assert (found.lines, found.torn) == (whole + 1, False)


def test_a_disk_that_takes_no_more_leaves_the_log_whole(tmp_path: Path) -> None:
    path = logged(tmp_path / "log.jsonl", 3)
    size = path.stat().st_size

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 60, size + 60))
        with pytest.raises(LorkdError, match="the audit log can't be written"):
            logged(path, 1)

    writer = FORK.Process(target=fill)
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert path.stat().st_size == size
    assert verify_log(path).lines == 3
    logged(path, 1)
    assert verify_log(path).lines == 4


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("16k")
    path, written = disk / "log.jsonl", 0
    with pytest.raises(LorkdError, match="the disk is full") as raised:
        while written < 1000:
            logged(path, 1)
            written += 1
    assert raised.value.where == str(path) and 10 < written < 1000
    assert path.stat().st_blocks * 512 >= 12 << 10  # it was the disk's end, nothing else's
    found = verify_log(path)
    assert (found.lines, found.torn) == (written, False)
    subprocess.run(["mount", "-o", "remount,size=64k", str(disk)], check=True)
    logged(path, 1)
    assert verify_log(path).lines == written + 1


def test_what_can_not_be_a_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(LorkdError, match="no audit log"):
        verify_log(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(LorkdError, match="the audit log can't be written"):
        AuditLog(tmp_path / "file" / "log.jsonl")
    (tmp_path / "other.jsonl").write_text("no chain\n")
    with pytest.raises(LorkdError, match="damaged"):
        logged(tmp_path / "other.jsonl")
