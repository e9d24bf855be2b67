"""`lorkd benchmark`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lorkd_deploy.cli.options import Departments, Json, Quiet, Run, Tasks
from lorkd_deploy.cli.render import MIB, Output
from lorkd_deploy.errors import GateError

if TYPE_CHECKING:
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


def benchmark(
    run: Run,
    department: Departments = [],
    task: Tasks = [],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Only engines of this target; may be repeated.",
            show_default="all",
        ),
    ] = [],
    teacher: Annotated[
        bool, typer.Option("--teacher/--no-teacher", help="Measure the foundation model too.")
    ] = True,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds.", show_default="the recipe's")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", min=0, help="At least this long a round.", show_default="the recipe's"
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            min=1,
            help="At least this many images a round.",
            show_default="the recipe's",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads.", show_default="the recipe's"),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=0,
            max=3,
            help="Measure a round that others disturbed again, at most so often.",
            show_default="the recipe's",
        ),
    ] = None,
    largest_batch: Annotated[
        int | None,
        typer.Option(
            "--largest-batch",
            min=0,
            help="Look for the batch with the most images a second up to this; 0: don't.",
            show_default="the recipe's",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a benchmark that was stopped: its rounds stay."),
    ] = False,
    assertions: Annotated[
        list[str],
        typer.Option(
            "--assert",
            metavar="METRIC<NUMBER",
            help="Exit with 3 where an expert's engine doesn't hold it; may be repeated; ten "
            "rounds unless --rounds says otherwise. A wrong metric lists all; accuracy and drops "
            "are in points.",
            show_default=False,
        ),
    ] = [],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency, throughput, memory and accuracy of every engine and of the teacher.

    Each engine runs in a process of its own, rounds interleaved; writes RUN/profile/profile.json.

    \b
    Examples:
      lorkd benchmark runs/small
      lorkd benchmark runs/small --department eye-clinic --threads 2
      lorkd benchmark runs/small --rounds 2 --seconds 0.2 --iterations 20
      lorkd benchmark runs/small --resume
      lorkd benchmark runs/small --assert 'p90_ms<8' --assert 'ratio_vs_teacher>5'
    """
    from lorkd_deploy import benchmark as measure

    output = Output(as_json=as_json, quiet=quiet)
    profile = measure(
        run,
        department=department,
        task=task,
        target=target,
        teacher=teacher,
        rounds=rounds,
        seconds=seconds,
        iterations=iterations,
        threads=threads,
        repeats=repeats,
        largest_batch=largest_batch,
        resume=resume,
        assertions=assertions,
        progress=output.progress(),
    )
    show(output, profile)
    failed = [entry for entry in profile.assertions if not entry.passed]
    for entry in failed:
        value = "not measured" if entry.value is None else f"{entry.value:.4g}"
        output.warning(f"{entry.engine}: {entry.text} does not hold: {value}")
    output.text(f"next: lorkd report {run}")
    output.result(profile)
    if failed:
        raise typer.Exit(GateError.exit_code)


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
