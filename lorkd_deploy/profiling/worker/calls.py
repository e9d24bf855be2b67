"""Time an engine's calls one by one, in the worker's process. Standard library only."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from array import array
from collections.abc import Callable, Iterator
from typing import TypeVar

SETTLED = 0.02  # two warm-up windows whose medians differ by less are called settled
MOST_WINDOWS = 10
STEPS = 10_000  # of the loop that `pace` times: a quarter of a millisecond
Batch = TypeVar("Batch")


def timed_calls(
    run: Callable[[Batch], object], batch: Batch, least: int, seconds: float
) -> array[int]:
    """Nanoseconds of each call of `run`, at least `least` of them and for at least `seconds`."""
    # The clock is read right before and after the call and nothing else happens in between.
    clock = time.perf_counter_ns
    calls = array("q")
    deadline = clock() + int(seconds * 1e9)
    while True:
        started = clock()
        run(batch)
        ended = clock()
        calls.append(ended - started)
        if ended >= deadline and len(calls) >= least:
            return calls


def pace() -> int:
    """Nanoseconds of a loop that is the same everywhere: at its best of five, so that it tells of
    the clock and of who shares the core or the machine under it, and not of one interruption."""
    best = 0
    for _ in range(5):
        started = time.perf_counter_ns()
        for _ in range(STEPS):
            pass
        took = time.perf_counter_ns() - started
        best = min(best, took) if best else took
    return best


def warm_up(
    run: Callable[[Batch], object], batch: Batch, window: int, seconds: float
) -> tuple[int, bool]:
    """Windows of calls until two medians in a row agree; gives up after `seconds`.

    → calls, and whether they did agree (with no warm-up asked for, there is nothing to settle).
    """
    if not window:
        return 0, True
    started = time.perf_counter()
    previous: float | None = None
    calls = 0
    for _ in range(MOST_WINDOWS):
        median = statistics.median(timed_calls(run, batch, window, 0))
        calls += window
        if previous is not None and abs(median - previous) <= SETTLED * previous:
            return calls, True
        if time.perf_counter() - started > seconds:
            break
        previous = median
    return calls, False


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Collect garbage once before, and none meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
