"""How fast open engines are beside each other, on this machine's clock: for choosing, not for a
report, which `lorkd benchmark` measures with a process for each engine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping

from lorkd_deploy.runtime import F32, Runner

WARM_UP = 5  # calls before a round's first timed one, for caches that the others have taken
LEAST = 5  # timed calls a round


def interleaved(
    runners: Mapping[str, Runner], batch: F32, *, rounds: int, seconds: float
) -> dict[str, tuple[float, ...]]:
    """Each runner's median call in ms, a round each; `seconds` a runner and round at least.

    Every round has every runner once, forwards and backwards in turn, so that a machine that grows
    warmer or busier favours none.
    """
    names = list(runners)
    medians: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                medians[name].append(_median_ms(runners[name], batch, seconds))
    finally:
        if enabled:
            gc.enable()
    return {name: tuple(values) for name, values in medians.items()}


def _median_ms(runner: Runner, batch: F32, seconds: float) -> float:
    for _ in range(WARM_UP):
        runner(batch)
    clock = time.perf_counter_ns
    calls: list[int] = []
    deadline = clock() + int(seconds * 1e9)
    while len(calls) < LEAST or clock() < deadline:
        started = clock()
        runner(batch)
        calls.append(clock() - started)
    return statistics.median(calls) / 1e6
