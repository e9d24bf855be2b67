"""One round of one engine: a fresh process, its cold start, each batch size, and the stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.page_cache import forget
from lorkd_deploy.machine.power import Power
from lorkd_deploy.profiling.conditions import (
    OTHERS,
    SLOWER,
    THROTTLED,
    Conditions,
    conditions,
    snapshot,
    worst,
)
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.timing import RoundCalls
from lorkd_deploy.profiling.worker.process import EngineProcess
from lorkd_deploy.profiling.worker.stages import STAGES


@dataclass(frozen=True)
class Round:
    """One engine's process in one round: cold-start times and median stages in ms, memory in MiB,
    calls by batch, joules per image at the smallest batch, and what the machine did meanwhile;
    `paces` is what a fixed piece of work took beside each batch, ns."""

    cold: dict[str, float]
    empty: float | None
    loaded: float | None
    facts: dict[str, Any]
    batches: Mapping[int, RoundCalls]
    stages: dict[str, float]
    joules: float | None
    conditions: Conditions
    gpu: float | None
    allocator: float | None
    unified: float | None
    uncached: dict[str, float] | None
    paces: Sequence[float]


@dataclass
class Pace:
    """What a fixed piece of work has taken in this benchmark so far, ns.

    Compared is with the median: a single lucky time would make every later round a disturbed one
    on a machine whose speed wanders.
    """

    seen: list[float] = field(default_factory=list)

    def of(self, took: float) -> float:
        """`took` as a multiple of the median, itself included."""
        self.seen.append(took)
        return took / statistics.median(self.seen)


@dataclass(frozen=True)
class Instruments:
    """What rounds are measured with besides a clock."""

    power: Power
    gpus: Gpus
    pace: Pace = field(default_factory=Pace)


def measure_round(
    engine: Artifact, protocol: Protocol, image: Path, instruments: Instruments
) -> Round:
    """One round that the machine left alone, or the least disturbed of `1 + protocol.repeats`.

    `image` is the file that the stages start from. Raises `WorkerError`, which names the engine.
    """
    best: Round | None = None
    attempts = 0
    while attempts <= protocol.repeats:
        attempts += 1
        found = _attempt(engine, protocol, image, instruments)
        if best is None or _disturbance(found) < _disturbance(best):
            best = found
        if not found.conditions.disturbed:
            break
    assert best is not None
    return replace(best, conditions=best.conditions.model_copy(update={"attempts": attempts}))


def _disturbance(measured: Round) -> float:
    state = measured.conditions
    hot = bool(state.slowdowns) + (state.gpu_slowed is not None)
    slower = ((state.pace or 1) - 1) / SLOWER
    return (state.others or 0) / OTHERS + (state.throttled or 0) / THROTTLED + slower + hot


def _attempt(engine: Artifact, protocol: Protocol, image: Path, instruments: Instruments) -> Round:
    """Start the engine afresh, load it, and measure it at each batch size, smallest first."""
    available = instruments.gpus.available()
    watch = _Watch(protocol.cpus, instruments)
    with EngineProcess(engine, protocol.threads, protocol.cpus) as process:
        opened, cold = _cold_start(process, protocol)
        batches: dict[int, RoundCalls] = {}
        joules = gpu = allocator = left = None
        for size in _batch_sizes(engine, protocol):
            watch.begin(process)
            meters = instruments.power.now()
            measured, calls = _measure(process, protocol, size)
            if not batches:
                joules = instruments.power.above_idle(meters, measured["images"])
                gpu, allocator = instruments.gpus.memory(process.pid), measured["allocated"]
                left = instruments.gpus.available()
            watch.end(process, measured["pace"])
            batches[size] = calls
        watch.begin(process)
        stages = _stages(process, protocol, image)
        watch.end(process)
        files = process.ask("files")[0]["files"] if protocol.uncached else []
    return Round(
        cold=cold,
        empty=opened["empty"],
        loaded=opened["loaded"],
        facts=opened["facts"],
        batches=batches,
        stages=stages,
        joules=joules,
        conditions=worst(watch.parts),
        gpu=gpu,
        allocator=allocator,
        unified=None if available is None or left is None else available - left,
        uncached=_uncached(engine, protocol, [Path(file) for file in files]) if files else None,
        paces=watch.paces,
    )


def _batch_sizes(engine: Artifact, protocol: Protocol) -> list[int]:
    """The protocol's and the engine's best one, smallest first."""
    own = protocol.best_batches.get(engine.name)
    return sorted({*protocol.batch_sizes, *([own] if own else [])})


def _cold_start(
    process: EngineProcess, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, float]]:
    """Load the engine and let it answer once: what the worker says of it, and the times, ms."""
    opened = process.open()
    shape = [_batch_sizes(process.engine, protocol)[0], *process.engine.input_shape]
    first, _ = process.ask("first", shape=shape, seed=protocol.seed)
    return opened, {
        "runtime_import": opened["runtime_import"],
        "load": opened["load"],
        "first_inference": first["first_inference"],
        "process_to_first_answer": (first["answered"] - process.started) / 1e6,
    }


def _measure(
    process: EngineProcess, protocol: Protocol, size: int
) -> tuple[dict[str, Any], RoundCalls]:
    """The calls at one batch size, and what the worker says of them."""
    measured, calls = process.ask(
        "measure",
        shape=[size, *process.engine.input_shape],
        seed=protocol.seed,
        iterations=protocol.iterations,
        seconds=protocol.seconds,
        warmup=protocol.warmup,
    )
    return measured, RoundCalls(
        np.frombuffer(calls, np.int64),
        measured["peak"],
        measured["interruptions"],
        measured["settled"],
    )


class _Watch:
    """What the machine does during each part of a round: every batch, and the stages."""

    def __init__(self, cpus: Sequence[int] | None, instruments: Instruments) -> None:
        self.cpus, self.instruments = cpus, instruments
        self.parts: list[Conditions] = []
        self.paces: list[float] = []

    def begin(self, process: EngineProcess) -> None:
        self.used = process.ask("used")[0]["cpu"]
        self.before = snapshot(self.cpus)

    def end(self, process: EngineProcess, pace: int | None = None) -> None:
        after = snapshot(self.cpus)
        own = process.ask("used")[0]["cpu"] - self.used
        beside = None
        if pace is not None:
            self.paces.append(pace)
            beside = self.instruments.pace.of(pace)
        self.parts.append(
            conditions(self.before, after, own, self.cpus, gpus=self.instruments.gpus, pace=beside)
        )


def _uncached(
    engine: Artifact, protocol: Protocol, files: Sequence[Path]
) -> dict[str, float] | None:
    """Cold-start times of a process whose files the system has to read again, ms; None where the
    kernel can't be made to forget them."""
    own = [engine.folder / name for name in engine.file_names]
    forgotten = forget([*files, *own])
    if forgotten is None:
        return None
    with EngineProcess(engine, protocol.threads, protocol.cpus) as process:
        _, cold = _cold_start(process, protocol)
    names = ("load", "first_inference", "process_to_first_answer")
    return {f"uncached_{name}": cold[name] for name in names} | {"forgotten": forgotten}


def _stages(process: EngineProcess, protocol: Protocol, image: Path) -> dict[str, float]:
    """Median ms of each stage, and of whole passes, after everything that measures memory."""
    task = process.engine.tasks[0]
    _, data = process.ask(
        "stages",
        image=str(image),
        preprocess=process.engine.preprocess.model_dump(mode="json"),
        raw=process.engine.raw,
        kind=task.kind,
        start=task.start,
        stop=task.stop,
        iterations=protocol.stage_passes,
        seconds=protocol.stage_seconds,
    )
    passes = np.frombuffer(data, np.int64).reshape(-1, len(STAGES)) / 1e6
    medians = dict(zip(STAGES, np.median(passes, axis=0).tolist(), strict=True))
    return medians | {"end_to_end": float(np.median(passes.sum(axis=1)))}
