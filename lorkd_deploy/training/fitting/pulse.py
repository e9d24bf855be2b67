"""Who of a distributed training still lives: each process says so, and watches the others.

A collective operation that has lost a member fails with words about sockets, or waits. The store
at which the processes have met tells more: each of them writes a new value there twice a second,
or why it has stopped.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Protocol

log = logging.getLogger(__name__)
PERIOD = 0.5  # s between two signs of life
SILENT = 4.0  # s without one from which a process is dead, if a collective operation has broken
GRACE = 5.0  # s in which the main thread can end by itself; it may wait for a dead GPU for ever
DONE, FAILED = "done", "failed"


class Store(Protocol):
    """What is used of torch's key-value stores."""

    def set(self, key: str, value: str, /) -> None: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


class Pulse:
    """The sign of life of process `index` of `count`, and what became of the others.

    A process that is silent for `timeout` seconds is lost, as is one that says it has failed.
    Then this one ends too: by the main thread's own error (`lost`), or `GRACE` seconds later with
    exit code 1.
    """

    def __init__(self, store: Store, index: int, count: int, timeout: float) -> None:
        self._store = store
        self._index = index
        self._timeout = timeout
        self._keys = [f"lorkd/pulse/{i}" for i in range(count)]
        self._beats = 0
        self._heard: dict[int, tuple[str, float]] = {}
        self._broken = threading.Event()
        self._ended = threading.Event()
        self._found: str | None = None
        self._thread = threading.Thread(target=self._run, name="lorkd-pulse", daemon=True)

    def start(self) -> None:
        """Say the first sign of life; every process must have, before any looks at the others'."""
        self._say()

    def watch(self) -> None:
        """Look at the others from now on."""
        self._thread.start()

    def end(self, failed: str | None = None) -> None:
        """Stop watching and say why: that all is done, or what has failed."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(2 * PERIOD)
        try:
            self._store.set(
                self._keys[self._index],
                "\t".join((DONE, _here(), "") if failed is None else (FAILED, _here(), failed)),
            )
        except RuntimeError:
            log.debug("the store has gone before this process")

    def lost(self, wait: float = SILENT + 4 * PERIOD) -> str | None:
        """After a collective operation broke: who is lost and how, looked for `wait` seconds."""
        self._broken.set()
        end = time.monotonic() + wait
        while self._found is None and time.monotonic() < end and self._thread.is_alive():
            time.sleep(PERIOD / 5)
        return self._found

    def _run(self) -> None:
        since = None
        while not self._ended.wait(PERIOD):
            if self._found is None:
                self._found = self._look()
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > GRACE:
                log.error("%s; this process ends too", self._found)
                os._exit(1)

    def _look(self) -> str | None:
        try:
            self._say()
            values = [value.decode() for value in self._store.multi_get(self._keys)]
        except RuntimeError:
            return "the process that holds the store (rank 0 or its launcher) is gone"
        now = time.monotonic()
        allowed = min(SILENT, self._timeout) if self._broken.is_set() else self._timeout
        for index, value in enumerate(values):
            state, where, why = value.split("\t", 2)
            if index == self._index or state == DONE:
                continue
            if state == FAILED:
                return f"rank {index} ({where}) stopped: {why}"
            if self._heard.get(index, ("", 0.0))[0] != value:
                self._heard[index] = (value, now)
            elif (silent := now - self._heard[index][1]) > allowed:
                return (
                    f"rank {index} ({where}) has died: nothing was heard of it for {silent:.0f} s"
                )
        return None

    def _say(self) -> None:
        self._beats += 1
        self._store.set(self._keys[self._index], f"{self._beats}\t{_here()}\t")


def _here() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"
