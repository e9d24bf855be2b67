"""By what protocol engines are measured: the recipe's, what was asked for, order and CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from lorkd_deploy.errors import UsageError
from lorkd_deploy.profiling.conditions import OTHERS, SLOWER, THROTTLED
from lorkd_deploy.profiling.resampling import MARGIN
from lorkd_deploy.profiling.worker.stages import SIDE
from lorkd_deploy.recipe import BenchmarkSpec
from lorkd_deploy.schema import Part

# What a quick benchmark does, unless told otherwise.
QUICK: dict[str, float] = {
    "rounds": 2,
    "seconds": 0.2,
    "iterations": 20,
    "repeats": 0,
    "largest_batch": 0,
    "uncached": False,
}
_CPUS = Path("/sys/devices/system/cpu")


class Protocol(Part):
    """How it was measured.

    Each round starts every engine once, in a fresh process, in the order that `order` records:
    drawn with `seed`, each second round the reverse of the one before, so that a drift of the
    machine falls on all alike. At each batch size a round warms up (at least `warmup` images, until
    the median settles), then calls the engine until `iterations` images (at batch 32 a 32nd as
    many calls) and `seconds` are done.
    `cpus` are the logical CPUs that the worker was pinned to (None: pinning isn't possible here).

    A round is repeated, at most `repeats` times, if in one of its parts (`Conditions`) others took
    more than `most_others` of those CPUs, or a CPU limit stopped the engine for more than
    `most_throttled` of the time, or the machine took `most_slower` longer for a fixed piece of work
    than in the median of the benchmark until then.
    `best_batches` are measured beside `batch_sizes`: found before the rounds, up to
    `largest_batch`. `quick` was asked for: shorter than the protocol wants. `uncached`: each round
    starts the engine once more, with its files out of the page cache. `power` names the energy
    counters, or says why there are none; `idle_watts` is what they showed before the rounds.
    `stage_image` is the side, px, of the drawn PNG that the stages start from. `input_shape` is
    that of the experts; `teacher_input_shape` the teacher's, where it has one of its own.
    """

    rounds: int
    seconds: float
    iterations: int
    warmup: int
    threads: int
    cpus: tuple[int, ...] | None
    batch_sizes: tuple[int, ...]
    input_shape: tuple[int, int, int]
    teacher_input_shape: tuple[int, int, int] | None = None
    seed: int
    order: tuple[tuple[str, ...], ...]
    margin: float
    clock: str
    repeats: int
    most_others: float
    most_throttled: float
    most_slower: float
    largest_batch: int
    best_batches: dict[str, int] = Field(default_factory=dict)
    stage_image: int
    quick: bool
    uncached: bool
    gpu_memory: str | None = None
    power: str | None = None
    idle_watts: float | None = None

    @property
    def stage_passes(self) -> int:
        """How often a round does all stages at least."""
        return max(3, self.iterations // 4)

    @property
    def stage_seconds(self) -> float:
        """How long a round does so at least, seconds."""
        return self.seconds / 4

    @property
    def bounds(self) -> str:
        """What disturbs a round, in words, as `conditions` judges it."""
        return (
            f"other processes took more than {100 * self.most_others:g} % of the engine's CPUs, "
            f"a CPU limit stopped it for more than {100 * self.most_throttled:g} % of the time, "
            f"a fixed piece of work took {100 * self.most_slower:g} % longer than in the median of "
            "the benchmark, a CPU slowed itself down for heat, or the GPU was slowed (by heat or a "
            "cap on its power)"
        )


def protocol_of(
    asked: BenchmarkSpec,
    engines: Sequence[str],
    size: int,
    given: Mapping[str, float],
    *,
    quick: bool = False,
) -> Protocol:
    """The protocol that the recipe `asked` for, with what is `given` on top, for engines of these
    names and images of `size` px; `quick` takes `QUICK` for what isn't given.

    Raises `UsageError` for what can't be, and for more threads than CPUs.
    """
    try:
        spec = BenchmarkSpec.model_validate(
            asked.model_dump() | (QUICK if quick else {}) | dict(given)
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        raise UsageError(f"{first['loc'][0]}: {first['msg']}") from exc
    clock = time.get_clock_info("perf_counter")
    return Protocol(
        rounds=spec.rounds,
        seconds=spec.seconds,
        iterations=spec.iterations,
        warmup=spec.warmup,
        threads=spec.threads,
        cpus=choose_cpus(spec.threads),
        batch_sizes=tuple(sorted(set(spec.batch_sizes))),
        input_shape=(3, size, size),
        seed=spec.seed,
        order=orders(engines, spec.rounds, spec.seed),
        margin=MARGIN,
        clock=f"{clock.implementation}, resolution {clock.resolution * 1e9:g} ns",
        repeats=spec.repeats,
        most_others=OTHERS,
        most_throttled=THROTTLED,
        most_slower=SLOWER,
        largest_batch=spec.largest_batch,
        stage_image=SIDE,
        quick=quick,
        uncached=spec.uncached,
    )


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
