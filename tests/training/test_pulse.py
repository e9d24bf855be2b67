"""Who of the processes is lost, from what they write into the store they share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lorkd_deploy.training.fitting import pulse as module
from lorkd_deploy.training.fitting.pulse import Pulse


class Shared:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.pulses: list[Pulse] = []

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        return [self.values[key].encode() for key in keys]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    monkeypatch.setattr(module, "PERIOD", 0.01)
    monkeypatch.setattr(module, "SILENT", 2.0)
    # What a test that fails leaves behind must not end the whole test run.
    monkeypatch.setattr(os, "_exit", lambda code: None)
    shared = Shared()
    yield shared
    for pulse in shared.pulses:
        pulse._ended.set()
        if pulse._thread.ident is not None:
            pulse._thread.join()


def _three(store: Shared, timeout: float) -> list[Pulse]:
    pulses = [Pulse(store, index, 3, timeout) for index in range(3)]
    store.pulses = pulses
    for pulse in pulses:
        pulse.start()
    return pulses


def test_living_and_finished_processes_are_not_lost(
    store: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test's own: each look is a sign of life, a second after the one before."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pulses = [Pulse(store, index, 3, timeout=3) for index in range(3)]
    for pulse in pulses:
        pulse.start()
    pulses[2].end()
    for _ in range(10):
        now[0] += 1
        assert [pulse._look() for pulse in pulses[:2]] == [None, None]
    for _ in range(4):  # the first of them still hears its last sign
        now[0] += 1
        assert pulses[0]._look() is None
    now[0] += 1
    assert "rank 1" in (pulses[0]._look() or "")


def test_a_silent_process_is_named_with_its_machine(store: Shared) -> None:
    pulses = _three(store, timeout=60)
    for pulse in pulses[:2]:
        pulse.watch()
    lost = pulses[0].lost(wait=10)
    assert lost is not None
    assert lost.startswith(f"rank 2 (pid {os.getpid()} on ")
    assert "has died" in lost
    for pulse in pulses[:2]:
        pulse.end()


def test_a_process_that_failed_says_why(store: Shared) -> None:
    pulses = _three(store, timeout=60)
    pulses[0].watch()
    pulses[1].end("cells: an image\tcan't be read")
    lost = pulses[0].lost(wait=10)
    assert lost is not None
    assert lost.startswith("rank 1 (")
    assert lost.endswith("stopped: cells: an image\tcan't be read")
    pulses[0].end()


def test_a_main_thread_that_waits_for_ever_is_ended_within_the_timeout(
    store: Shared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    codes = []

    def leave(code: int) -> None:
        codes.append(code)
        pulses[0]._ended.set()
        ended.set()

    monkeypatch.setattr(module, "GRACE", 0.02)
    monkeypatch.setattr(os, "_exit", leave)
    pulses = _three(store, timeout=0.3)
    pulses[1].end()  # one watch alone: a second one would end this process as well
    pulses[0].watch()
    assert ended.wait(10), "nobody was missed"
    assert codes == [1]
    assert "rank 2" in caplog.text


def test_a_store_that_is_gone_is_told(store: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    pulses = _three(store, timeout=60)

    def gone(*_: object) -> list[bytes]:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(store, "multi_get", gone)
    pulses[0].watch()
    assert "store" in (pulses[0].lost(wait=10) or "")
    pulses[0].end()
