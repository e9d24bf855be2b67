"""In which order engines are measured, and on which CPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorkd_deploy.errors import UsageError

_CPUS = Path("/sys/devices/system/cpu")


def orders(engines: Sequence[str], rounds: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """For each round all engines once: a random order, then its reverse, then a new one, …

    Over each pair of rounds every engine has the same mean place, so that a machine that slowly
    grows warmer or busier favours none, and each is before and after each other equally often.
    """
    generator = np.random.default_rng(seed)
    found: list[tuple[str, ...]] = []
    while len(found) < rounds:
        drawn = tuple(engines[int(i)] for i in generator.permutation(len(engines)))
        found += [drawn, drawn[::-1]]
    return tuple(found[:rounds])


def choose_cpus(threads: int, topology: Path = _CPUS) -> tuple[int, ...] | None:
    """One logical CPU a thread, each on a core of its own while there are any; the highest first,
    since the lowest serve interrupts. None where a process can't be pinned (not Linux).

    Raises `UsageError` for more threads than this process may use CPUs.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    if threads > len(allowed):
        raise UsageError(
            f"{threads} threads were asked for, this process may use {len(allowed)} CPUs",
            fix=f"use at most {len(allowed)} (--threads, or benchmark.threads in the recipe)",
        )
    first_of_core: list[int] = []
    siblings: list[int] = []
    cores: set[str] = set()
    for cpu in allowed:
        core = _core(topology, cpu)
        (siblings if core in cores else first_of_core).append(cpu)
        cores.add(core)
    return tuple(sorted((first_of_core + siblings)[:threads]))


def _core(topology: Path, cpu: int) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
