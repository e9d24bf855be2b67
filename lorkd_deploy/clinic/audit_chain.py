"""The audit log's chain: each line has the hash of the one before it, across rotated files too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.storage import sha256_bytes

START = "0" * 64
_TAIL = 1 << 16  # bytes from the end in which the last line is looked for, doubled until it is


def write(stream: FileIO, said: Mapping[str, Any], previous: str, end: int) -> None:
    """Append one line and flush it to the disk; what was written of it goes where that fails."""
    entry = {**said, "previous": previous}
    entry["sha256"] = hash_of(entry)
    line = json.dumps(entry, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
    try:
        stream.truncate(end)  # what a killed process began
        left = memoryview(line.encode())
        while left:  # what is written to a disk that is nearly full may be a part
            left = left[stream.write(left) :]
        os.fsync(stream.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(stream.fileno(), end)
        raise


def last_line(stream: FileIO, path: Path) -> tuple[str | None, int]:
    """The hash of the last whole line, None in an empty log, and where it ends."""
    size = stream.seek(0, os.SEEK_END)
    wanted = _TAIL
    while True:
        start = max(0, size - wanted)
        stream.seek(start)
        tail = stream.read(size - start)
        whole = tail[: tail.rfind(b"\n") + 1]
        before = whole.rstrip(b"\n").rfind(b"\n")
        if before >= 0 or start == 0:
            break
        wanted *= 2
    if not whole:
        return None, 0
    entry = parsed(whole[before + 1 :])
    if entry is None:
        raise LorkdError(
            "the last line of the audit log is damaged",
            where=path,
            fix="`lorkd audit verify` says where the chain breaks; begin a new log",
        )
    return entry["sha256"], start + len(whole)


def rotated(path: Path) -> list[Path]:
    """The files that the log was before, oldest first."""
    found = [f for f in path.parent.glob(f"{path.name}.*") if f.suffix[1:].isdigit()]
    return sorted(found, key=lambda file: int(file.suffix[1:]))


def rotated_end(path: Path) -> str:
    """What a new file's first line follows."""
    before = rotated(path)
    if not before:
        return START
    with before[-1].open("rb", buffering=0) as stream:
        return last_line(stream, before[-1])[0] or START


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line that has its two hashes, None where it is anything else."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    good = isinstance(entry, dict) and {"sha256", "previous"} <= entry.keys()
    return entry if good else None


def hash_of(entry: Mapping[str, Any]) -> str:
    """The SHA-256 of a line: of all that it says but for its own hash."""
    said = {key: value for key, value in entry.items() if key != "sha256"}
    return sha256_bytes(json.dumps(said, ensure_ascii=False, sort_keys=True).encode())
