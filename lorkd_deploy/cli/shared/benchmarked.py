"""What `lorkd benchmark` shows when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lorkd_deploy.cli.shared.render import MIB, Output

if TYPE_CHECKING:
    from lorkd_deploy.profiling.mlperf.profile import ScenarioProfile
    from lorkd_deploy.profiling.profile import Comparison, EngineProfile, Profile

COLUMNS = (
    "engine",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
    "load ms",
    "first ms",
    "peak MiB",
    "file MiB",
    "accuracy",
    "AUC",
)
BESIDE = (
    "engine",
    "times faster",
    "95 % interval",
    "verdict",
    "times less memory",
    "times smaller",
    "accuracy difference",
    "AUC difference",
    "gained",
    "lost",
    "McNemar p",
)
DECISIONS = (
    "engine",
    "task",
    "balanced accuracy",
    "sensitivity",
    "specificity",
    "threshold",
    "calibration error",
)
SCENARIOS = (
    "scenario",
    "engine",
    "MLPerf's metric",
    "value",
    "unit",
    "p99 ms",
    "LoadGen says",
    "conforms",
    "accuracy",
)


def show(output: Output, profile: Profile) -> None:
    """A row an engine at its smallest batch, each expert beside its teacher, and the protocol."""
    protocol = profile.protocol
    output.table(
        f"Batch {min(protocol.batch_sizes)}", COLUMNS, [_row(engine) for engine in profile.engines]
    )
    if profile.comparisons:
        output.table("Beside the teacher", BESIDE, [_beside(pair) for pair in profile.comparisons])
    if rows := [row for engine in profile.engines for row in _decisions(engine)]:
        output.table("Decisions and calibration on the test split", DECISIONS, rows)
    output.text(
        f"{protocol.rounds} rounds, each at least {protocol.seconds:g} s and "
        f"{protocol.iterations} images; CPU threads: {protocol.threads}; {profile.environment.cpu}"
    )
    if profile.assertions:
        output.table(
            "Assertions",
            ("engine", "assertion", "measured", "holds"),
            [(entry.engine, entry.text, entry.value, entry.passed) for entry in profile.assertions],
        )
    for note in profile.notes:
        output.text(f"note: {note}")


def _row(engine: EngineProfile) -> tuple[object, ...]:
    timing, cold, peak = engine.latency, engine.cold_start, engine.memory.peak
    one = engine.scores[0] if len(engine.scores) == 1 else None  # the teacher has one a task
    return (
        engine.engine,
        timing.p50.value,
        timing.p90,
        timing.p99,
        timing.throughput.value,
        cold.load.median,
        cold.first_inference.median,
        peak.median if peak else None,
        engine.bytes / MIB,
        one.accuracy.value if one else None,
        one.auc.value if one and one.auc else None,
    )


def _beside(pair: Comparison) -> tuple[object, ...]:
    latency = min(pair.latency, key=lambda ratio: ratio.batch)
    score = pair.scores[0] if pair.scores else None
    flips = score.flips if score else None
    return (
        pair.engine,
        latency.ratio.value,
        f"{latency.ratio.low:.2f} to {latency.ratio.high:.2f}",
        latency.verdict,
        pair.memory,
        pair.size,
        score.accuracy.value if score else None,
        score.auc.value if score and score.auc else None,
        flips.gained if flips else None,
        flips.lost if flips else None,
        flips.p if flips else None,
    )


def _decisions(engine: EngineProfile) -> Iterator[tuple[object, ...]]:
    for score in engine.scores:
        measured = (score.balanced_accuracy, score.sensitivity, score.specificity)
        limits = sorted(set(score.thresholds))
        yield (
            engine.engine,
            score.task,
            *(interval.value if interval else None for interval in measured),
            limits[0] if len(limits) == 1 else f"{limits[0]:.2g} to {limits[-1]:.2g}",
            score.calibration_error.value if score.calibration_error else None,
        )


def show_scenarios(output: Output, profile: ScenarioProfile, asked: Sequence[str]) -> None:
    """A row a scenario and engine, and why those that don't conform to MLPerf's rules don't."""
    rows = [entry for entry in profile.runs if entry.scenario in asked]
    output.table(
        "MLPerf scenarios by LoadGen",
        SCENARIOS,
        [
            (
                entry.scenario,
                entry.engine,
                entry.metric,
                entry.value,
                entry.unit,
                entry.percentiles.get("99"),
                entry.result,
                entry.conforms,
                entry.scores[0].accuracy.value if len(entry.scores) == 1 else None,
            )
            for entry in rows
        ],
    )
    reasons: dict[str, list[str]] = {}
    for entry in rows:
        for why in entry.because:
            reasons.setdefault(why, []).append(f"{entry.scenario} {entry.engine}")
    for why, where in reasons.items():
        output.text(f"does not conform: {why} ({_named(where, len(rows))})")
    for note in profile.notes:
        output.text(f"note: {note}")


def _named(where: list[str], total: int) -> str:
    if len(where) == total and total > 1:
        return "all of them"
    return ", ".join(where)
