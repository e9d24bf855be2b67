"""`lorkd` in a forked process, so that it can be limited and killed; imports are paid once."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lorkd_deploy import cli


def limited(kind: int, value: int) -> Callable[[], None]:
    """A limit of a process."""
    return lambda: resource.setrlimit(kind, (value, value))


def memory(mebibytes: int) -> Callable[[], None]:
    """So much above what it has."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limited(resource.RLIMIT_AS, pages * resource.getpagesize() + (mebibytes << 20))()

    return limit


class Ended(NamedTuple):
    """How a command ended (negative: the signal), what it said, and after how long, s."""

    code: int
    said: str
    seconds: float

    @property
    def is_sentence(self) -> bool:
        """Whether it ended as a user may expect: by an exit code, without a traceback."""
        return self.code >= 0 and "Traceback" not in self.said


class Child:
    """A command under way; `limit` is called in its process first."""

    def __init__(self, command: Sequence[str], limit: Callable[[], None] | None = None) -> None:
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self._said, saying = os.pipe()  # no file: it may have no disk
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                os.dup2(saying, 1)
                os.dup2(saying, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                if limit is not None:
                    limit()
                code = cli.main(list(command))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(saying)

    def kill_after(self, seconds: float) -> Ended:
        """kill -9 at that time, if it is still under way."""
        time.sleep(max(0.0, self.began + seconds - time.monotonic()))
        os.kill(self.pid, signal.SIGKILL)  # a zombie is killed without effect
        return self.wait()

    def wait(self) -> Ended:
        with os.fdopen(self._said, errors="replace") as stream:
            said = stream.read()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, said, time.monotonic() - self.began)
