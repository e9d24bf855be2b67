"""Measure engines round by round, and sum the rounds up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.conditions import OTHERS, THROTTLED, conditions, snapshot
from lorkd_deploy.profiling.memory import NO_SOURCE, SOURCE
from lorkd_deploy.profiling.pipeline import STAGES
from lorkd_deploy.profiling.power import Power
from lorkd_deploy.profiling.process import EngineProcess
from lorkd_deploy.profiling.profile import (
    BatchRatio,
    ColdStart,
    Comparison,
    Conditions,
    Difference,
    EngineProfile,
    Memory,
    Protocol,
    Score,
    Stages,
    calls_name,
)
from lorkd_deploy.profiling.selection import is_teacher
from lorkd_deploy.profiling.summary import (
    RoundCalls,
    batch_ratio,
    spread,
    spread_where_known,
    timing,
)


@dataclass(frozen=True)
class Round:
    """One engine's process in one round: cold-start times and median stages in ms, memory in MiB,
    calls by batch, joules an image at the smallest batch, and what the machine did meanwhile."""

    cold: dict[str, float]
    empty: float | None
    loaded: float | None
    facts: dict[str, Any]
    batches: Mapping[int, RoundCalls]
    stages: dict[str, float]
    joules: float | None
    conditions: Conditions


def measure_round(engine: Artifact, protocol: Protocol, image: Path, power: Power) -> Round:
    """One round that the machine left alone, or the least disturbed of `1 + protocol.repeats`.

    `image` is the file that the stages start from. Raises `WorkerError`, which names the engine.
    """
    best: Round | None = None
    attempts = 0
    while attempts <= protocol.repeats:
        attempts += 1
        found = _attempt(engine, protocol, image, power)
        if best is None or _disturbance(found) < _disturbance(best):
            best = found
        if not found.conditions.disturbed:
            break
    assert best is not None
    return replace(best, conditions=best.conditions.model_copy(update={"attempts": attempts}))


def _disturbance(measured: Round) -> float:
    state = measured.conditions
    return (state.others or 0) / OTHERS + (state.throttled or 0) / THROTTLED


def _attempt(engine: Artifact, protocol: Protocol, image: Path, power: Power) -> Round:
    """Start the engine afresh, load it, and measure it at each batch size, smallest first."""
    own = protocol.best_batches.get(engine.name)
    sizes = sorted({*protocol.batch_sizes, *([own] if own else [])})
    shape = list(protocol.input_shape)
    before = snapshot(protocol.cpus)
    with EngineProcess(engine, protocol.threads, protocol.cpus) as process:
        opened = process.open()
        first, _ = process.ask("first", shape=[sizes[0], *shape], seed=protocol.seed)
        batches = {}
        joules = None
        for size in sizes:
            meters = power.now()
            measured, calls = process.ask(
                "measure",
                shape=[size, *shape],
                seed=protocol.seed,
                iterations=protocol.iterations,
                seconds=protocol.seconds,
                warmup=protocol.warmup,
            )
            batches[size] = RoundCalls(
                np.frombuffer(calls, np.int64), measured["peak"], measured["interruptions"]
            )
            if size == sizes[0]:
                joules = power.above_idle(meters, measured["images"])
        cold = {
            "runtime_import": opened["runtime_import"],
            "load": opened["load"],
            "first_inference": first["first_inference"],
            "process_to_first_answer": (first["answered"] - process.started) / 1e6,
        }
        passed = _stages(process, protocol, image)
        used, _ = process.ask("used")
        state = conditions(before, snapshot(protocol.cpus), used["cpu"], protocol.cpus)
    return Round(
        cold, opened["empty"], opened["loaded"], opened["facts"], batches, passed, joules, state
    )


def _stages(process: EngineProcess, protocol: Protocol, image: Path) -> dict[str, float]:
    """Median ms of each stage, and of whole passes, after everything that measures memory."""
    task = process.engine.tasks[0]
    _, data = process.ask(
        "stages",
        image=str(image),
        preprocess=process.engine.preprocess.model_dump(mode="json"),
        kind=task.kind,
        start=task.start,
        stop=task.stop,
        iterations=max(3, protocol.iterations // 4),
        seconds=protocol.seconds / 4,
    )
    passes = np.frombuffer(data, np.int64).reshape(-1, len(STAGES)) / 1e6
    medians = dict(zip(STAGES, np.median(passes, axis=0).tolist(), strict=True))
    return medians | {"end_to_end": float(np.median(passes.sum(axis=1)))}


def engine_profile(
    engine: Artifact, protocol: Protocol, rounds: Sequence[Round], scores: Sequence[Score]
) -> EngineProfile:
    """Everything that was measured of one engine."""
    teacher = is_teacher(engine)
    smallest = min(rounds[0].batches)
    timings = tuple(
        timing(batch, [r.batches[batch] for r in rounds]) for batch in rounds[0].batches
    )
    fastest = max(timings, key=lambda entry: entry.throughput.value)
    peak = spread_where_known([r.batches[smallest].peak for r in rounds])
    return EngineProfile(
        engine=engine.name,
        kind="teacher" if teacher else "expert",
        department=None if teacher else engine.department,
        tasks=tuple(task.name for task in engine.tasks),
        target=engine.target,
        precision=engine.precision,
        bytes=engine.bytes,
        facts=rounds[0].facts,
        cold_start=ColdStart(
            **{name: spread([r.cold[name] for r in rounds]) for name in rounds[0].cold}
        ),
        memory=Memory(
            empty=spread_where_known([r.empty for r in rounds]),
            loaded=spread_where_known([r.loaded for r in rounds]),
            peak=peak,
            source=NO_SOURCE if peak is None else SOURCE,
        ),
        timings=timings,
        scores=tuple(scores),
        build_seconds=engine.build_seconds,
        best_batch=fastest.batch if protocol.best_batches else None,
        stages=Stages(
            **{name: spread([r.stages[name] for r in rounds]) for name in rounds[0].stages}
        ),
        joules=spread_where_known([r.joules for r in rounds]),
        conditions=tuple(r.conditions for r in rounds),
    )


def comparison(
    expert: EngineProfile, teacher: EngineProfile, differences: Iterable[Difference]
) -> Comparison:
    """An expert beside the teacher, both measured in the same rounds."""
    return Comparison(
        engine=expert.engine,
        teacher=teacher.engine,
        latency=tuple(_ratios(expert, teacher)),
        memory=_peak_ratio(expert, teacher),
        size=teacher.bytes / expert.bytes,
        scores=tuple(differences),
    )


def single_calls(measured: Mapping[str, Sequence[Round]]) -> dict[str, npt.NDArray[np.int64]]:
    """Every call of every round, by the name it has in `calls.safetensors`."""
    return {
        calls_name(engine, batch, number): part.calls
        for engine, rounds in measured.items()
        for number, one in enumerate(rounds)
        for batch, part in one.batches.items()
    }


def _ratios(expert: EngineProfile, teacher: EngineProfile) -> Iterator[BatchRatio]:
    slow = {timing.batch: timing for timing in teacher.timings}
    for fast in expert.timings:
        if fast.batch in slow:  # each has a best batch of its own
            yield batch_ratio(slow[fast.batch], fast)


def _peak_ratio(expert: EngineProfile, teacher: EngineProfile) -> float | None:
    mine, theirs = expert.memory.peak, teacher.memory.peak
    # A peak below an empty process's is noise of a few pages, and no base for a ratio.
    if mine is None or theirs is None or mine.median <= 0:
        return None
    return theirs.median / mine.median
