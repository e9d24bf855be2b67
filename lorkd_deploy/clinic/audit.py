"""What was answered: a log that only grows, each line holding the hash of the one before it.

One JSON object a line: what it says, `previous`, the SHA-256 of the line before it (of a new log 64
zeros, of a rotated one that of the last line of the file before it), and `sha256`, its own, over
all but itself. A line that is changed, taken out or put elsewhere breaks the chain. Whoever can
write the whole file can write a whole new chain: keep the last hash (`lorkd audit verify` prints
it) where they can't reach it.

Nothing of a patient is in it: an image is its SHA-256.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

from lorkd_deploy.clinic.audit_chain import (
    START,
    hash_of,
    last_line,
    parsed,
    rotated,
    rotated_end,
    write,
)
from lorkd_deploy.deploy.answers.answering import Answer
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import GateError, LorkdError
from lorkd_deploy.schema import Part

SCHEMA = 1
ROTATE = 64 << 20  # bytes


class Entry(Part):
    """One line. `task` and `engine` (its folder below RUN/export) say who answered, the hashes of
    its first file and of the preprocessing what; `image` is the SHA-256 of the file. `guard` is
    None where it is off (`guarded` false) or there is none. `ms` is from the file to the answer,
    as a share of its batch.
    """

    schema_version: int = SCHEMA
    time: str
    task: str
    engine: str
    engine_sha256: str
    preprocess_sha256: str
    image: str
    outcome: str
    label: str
    probabilities: dict[str, float]
    guard: float | None
    guarded: bool
    ms: float
    previous: str
    sha256: str


class Audited(Part):
    """A log whose chain is whole: how many `lines`, and the hash of the last one. `files` are the
    rotated ones and the log itself, oldest first. `torn` tells of a last line that a killed
    process left unfinished, which the next writer removes.
    """

    files: tuple[str, ...]
    lines: int
    last: str
    torn: bool = False


class AuditLog:
    """Appends answers to the log at `path`, which is made where it isn't there.

    Several processes may write to one log: each appends under a lock, on the disk before the call
    returns. Above `rotate` bytes the file becomes `NAME.N` and a new one goes on with its chain.
    """

    def __init__(self, path: str | Path, *, rotate: int = ROTATE) -> None:
        self.path = Path(path)
        self._rotate = rotate
        with self._locked():  # a folder that can't be written to is told before any answer
            pass

    def answered(
        self, artifact: Artifact, answer: Answer, *, image: str, task: str, guarded: bool, ms: float
    ) -> None:
        """Append one answer; `image` is the SHA-256 of its file.

        Raises `LorkdError` where it can't be written, on a full disk too: nothing of it is left.
        """
        self.append(
            {
                "schema_version": SCHEMA,
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "task": task,
                "engine": artifact.name,
                "engine_sha256": artifact.files[0].sha256,
                "preprocess_sha256": artifact.preprocess_sha256,
                "image": image,
                "outcome": answer.outcome,
                "label": answer.label,
                "probabilities": answer.probabilities,
                "guard": answer.guard,
                "guarded": guarded,
                "ms": round(ms, 3),
            }
        )

    def append(self, said: Mapping[str, Any]) -> None:
        """Append `said` and the chain's two hashes as one line."""
        try:
            with self._locked() as stream:
                previous, end = last_line(stream, self.path)
                if previous is None:
                    previous = rotated_end(self.path)
                elif end >= self._rotate:
                    self._rotate_away()
                    with self.path.open("ab+", buffering=0) as fresh:
                        return write(fresh, said, previous, 0)
                write(stream, said, previous, end)
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            raise LorkdError(
                "the disk is full: the answer is not in the log"
                if full
                else f"the audit log can't be written: {exc.strerror}",
                where=self.path,
                fix="free space there; what was logged before is whole" if full else None,
            ) from exc

    def _rotate_away(self) -> None:
        number = len(rotated(self.path)) + 1
        self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileIO]:
        """The log, open at its end, for this process alone."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_name(f".{self.path.name}.lock").open("w")
        except OSError as exc:
            raise LorkdError(
                f"the audit log can't be written: {exc.strerror}", where=self.path
            ) from exc
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.path.open("ab+", buffering=0) as stream:
                yield stream


def verify_log(path: str | Path) -> Audited:
    """Check the whole chain of a log, its rotated files first.

    Raises `LorkdError` where there is no log, `GateError` at the first line that was changed, taken
    out or put elsewhere.
    """
    return _walked(path, lambda line: None)


def entries(path: str | Path) -> list[Entry]:
    """The lines of a log whose chain is whole; raises as `verify_log` does."""
    lines: list[bytes] = []
    _walked(path, lines.append)
    return [Entry.model_validate_json(line) for line in lines]


def _walked(path: str | Path, take: Callable[[bytes], None]) -> Audited:
    """`verify_log`, which hands each line on, once."""
    log = Path(path)
    if not log.is_file():
        raise LorkdError("there is no audit log here", where=log)
    files = [*rotated(log), log]
    previous, lines, torn = START, 0, False
    for file in files:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if file == log and not line.endswith(b"\n"):
                    torn = True
                    break
                entry = parsed(line)
                if entry is None or entry["sha256"] != hash_of(entry):
                    raise _broken("this line has been changed", file, number)
                if entry["previous"] != previous:
                    raise _broken(
                        "a line before this one is missing, or this one was put here", file, number
                    )
                previous, lines = entry["sha256"], lines + 1
                take(line)
    return Audited(files=tuple(map(str, files)), lines=lines, last=previous, torn=torn)


def _broken(what: str, file: Path, number: int) -> GateError:
    return GateError(
        f"the chain is broken: {what}",
        where=f"{file}, line {number}",
        fix="what is before it is whole; compare with a copy of the log",
    )
