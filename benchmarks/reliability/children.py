"""`lorkd` in a forked process, so that it can be limited and killed; imports are paid once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from lorkd_deploy import cli

T = TypeVar("T")


def limited(kind: int, value: int) -> Callable[[], None]:
    """A limit of a process."""
    return lambda: resource.setrlimit(kind, (value, value))


def memory(mebibytes: int) -> Callable[[], None]:
    """So much above what it has."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limited(resource.RLIMIT_AS, pages * resource.getpagesize() + (mebibytes << 20))()

    return limit


def apart(what: Callable[..., T], *given: object) -> T:
    """In a process of its own, which has no memory, thread or lock of this one or of another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(what, *given).result()


class Ended(NamedTuple):
    """How a command ended (negative: the signal), what it said, and its CPU and wall time, s."""

    code: int
    said: str
    seconds: float
    wall: float

    @property
    def is_sentence(self) -> bool:
        """Whether it ended as a user may expect: by an exit code, without a traceback."""
        return self.code >= 0 and "Traceback" not in self.said


class Child:
    """A command under way; `limit` is called in its process first."""

    def __init__(self, command: Sequence[str], limit: Callable[[], None] | None = None) -> None:
        self._began = time.monotonic()
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
            except BaseException:
                os.write(2, traceback.format_exc().encode())  # an interpreter would print it too
            finally:
                os._exit(code)
        os.close(saying)

    def kill_after(self, seconds: float, *, wall: bool = False) -> Ended:
        """kill -9 once it has had so much CPU time (`wall`: at that time), if it is under way.

        By CPU time a machine that others slow makes no difference to where that is.
        """
        while (self._wall() if wall else self._seconds()) < seconds and not self._has_ended():
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)  # a zombie is killed without effect
        return self.wait()

    def wait(self) -> Ended:
        said, ended = bytearray(), False
        while True:  # to its end, not to that of the pipe, which a process of its own may hold
            ready, _, _ = select.select([self._said], [], [], 0 if ended else 0.005)
            if ready and (block := os.read(self._said, 1 << 16)):
                said += block
            elif ended:
                break
            else:
                ended = self._has_ended()
        os.close(self._said)
        seconds = self._seconds()
        _, status = os.waitpid(self.pid, 0)
        code, text = os.waitstatus_to_exitcode(status), said.decode(errors="replace")
        return Ended(code, text, seconds, self._wall())

    def _wall(self) -> float:
        return time.monotonic() - self._began

    def _seconds(self) -> float:
        return time.clock_gettime(~self.pid << 3 | 2)  # Linux's clock of another process

    def _has_ended(self) -> bool:
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return ended is not None


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one, so that they can be seen."""
    become_subreaper = 36  # PR_SET_CHILD_SUBREAPER
    ctypes.CDLL(None).prctl(become_subreaper, 1, 0, 0, 0)


def children() -> set[int]:
    """Ids of this process's children."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for listed in found for pid in listed.read_text().split()}


def orphans(seconds: float, known: set[int]) -> set[int]:
    """Children but the `known` that don't end by themselves within that time; they are killed."""
    due = time.monotonic() + seconds
    while left := children() - known:
        late = time.monotonic() > due
        for pid in left:
            if late:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0 if late else os.WNOHANG)
        if late:
            return left
        time.sleep(0.01)
    return set()
