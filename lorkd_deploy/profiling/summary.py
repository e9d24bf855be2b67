"""All rounds of an engine summed up, and an expert beside the teacher by ratios paired by round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.machine.memory import NO_SOURCE, SOURCE
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.planning.selection import is_teacher, teacher_for
from lorkd_deploy.profiling.planning.setup import Setup
from lorkd_deploy.profiling.profile import (
    BatchRatio,
    ColdStart,
    Comparison,
    Difference,
    EngineProfile,
    Memory,
    Score,
    Stages,
    Verdict,
    calls_name,
)
from lorkd_deploy.profiling.resampling import (
    LEAST_ROUNDS,
    MARGIN,
    Spread,
    by_rounds,
    spread,
    spread_where_known,
)
from lorkd_deploy.profiling.rounds.round import Round
from lorkd_deploy.profiling.scoring import TaskAnswers, difference, score
from lorkd_deploy.profiling.timing import Timing, timing


def sum_up(
    setup: Setup, measured: Mapping[str, Sequence[Round]], scored: Mapping[str, TaskAnswers]
) -> tuple[tuple[EngineProfile, ...], tuple[Comparison, ...]]:
    """Every engine, and every expert beside the teacher's engine that is most like its own."""
    profiles = {
        engine.name: engine_profile(
            engine,
            setup.protocol,
            measured[engine.name],
            [score(a, engine.name) for a in scored.values() if engine.name in a.probabilities],
        )
        for engine in setup.engines
    }
    comparisons = []
    for expert in setup.engines:
        beside = teacher_for(expert, setup.engines)
        if not is_teacher(expert) and beside is not None:
            pair = {expert.name, beside.name}
            differences = [
                difference(a, expert.name, beside.name)
                for a in scored.values()
                if pair <= a.probabilities.keys()
            ]
            comparisons.append(
                comparison(profiles[expert.name], profiles[beside.name], differences)
            )
    return tuple(profiles.values()), tuple(comparisons)


def engine_profile(
    engine: Artifact, protocol: Protocol, rounds: Sequence[Round], scores: Sequence[Score]
) -> EngineProfile:
    """Everything that was measured of one engine."""
    teacher = is_teacher(engine)
    smallest = min(rounds[0].batches)
    timings = tuple(
        timing(batch, [r.batches[batch] for r in rounds]) for batch in rounds[0].batches
    )
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
            **{name: spread([r.cold[name] for r in rounds]) for name in rounds[0].cold},
            **_spreads([r.uncached for r in rounds]),
        ),
        memory=Memory(
            empty=spread_where_known([r.empty for r in rounds]),
            loaded=spread_where_known([r.loaded for r in rounds]),
            peak=peak,
            source=NO_SOURCE if peak is None else SOURCE,
            gpu=spread_where_known([r.gpu for r in rounds]),
            allocator=spread_where_known([r.allocator for r in rounds]),
            unified=spread_where_known([r.unified for r in rounds]),
            gpu_source=protocol.gpu_memory,
        ),
        timings=timings,
        scores=tuple(scores),
        build_seconds=engine.build_seconds,
        best_batch=_fastest(timings).batch if protocol.best_batches else None,
        stages=Stages(
            **{name: spread([r.stages[name] for r in rounds]) for name in rounds[0].stages}
        ),
        joules=spread_where_known([r.joules for r in rounds]),
        conditions=tuple(r.conditions for r in rounds),
    )


def _spreads(rounds: Sequence[dict[str, float] | None]) -> dict[str, Spread]:
    known = [entry for entry in rounds if entry is not None]
    if len(known) < len(rounds):
        return {}
    return {name: spread([entry[name] for entry in known]) for name in known[0]}


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
        throughput=_throughput(expert, teacher),
    )


def single_calls(measured: Mapping[str, Sequence[Round]]) -> dict[str, I64]:
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


def _fastest(timings: Iterable[Timing]) -> Timing:
    """The batch size with the most images a second."""
    return max(timings, key=lambda entry: entry.throughput.value)


def _throughput(expert: EngineProfile, teacher: EngineProfile) -> Interval | None:
    if expert.best_batch is None or teacher.best_batch is None:
        return None
    mine, theirs = _fastest(expert.timings), _fastest(teacher.timings)
    return paired_ratio(mine.round_throughput, theirs.round_throughput)


def _peak_ratio(expert: EngineProfile, teacher: EngineProfile) -> float | None:
    mine, theirs = expert.memory.peak, teacher.memory.peak
    # A peak below an empty process's is noise of a few pages, and no base for a ratio.
    if mine is None or theirs is None or mine.median <= 0:
        return None
    return theirs.median / mine.median


def paired_ratio(teacher: Sequence[float], expert: Sequence[float]) -> Interval:
    """Median over rounds of teacher / expert of the same round, with its 95 % interval."""
    ratios = np.asarray(teacher, np.float64) / np.asarray(expert, np.float64)
    return by_rounds(ratios, value=float(np.median(ratios)))


def batch_ratio(teacher: Timing, expert: Timing) -> BatchRatio:
    """Compare two timings of one batch size whose rounds were measured together."""
    ratio = paired_ratio(teacher.round_p50, expert.round_p50)
    return BatchRatio(
        batch=expert.batch, ratio=ratio, verdict=verdict(ratio, len(expert.round_p50))
    )


def verdict(ratio: Interval, rounds: int) -> Verdict:
    """What teacher / expert shows of the expert: only an interval wholly outside 1 ± MARGIN."""
    if rounds < LEAST_ROUNDS:
        return "too few rounds"
    if ratio.low > 1 + MARGIN:
        return "faster"
    if ratio.high < 1 - MARGIN:
        return "slower"
    return "no difference shown"
