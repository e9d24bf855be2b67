"""`lorkd benchmark`"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lorkd_deploy.cli.shared.benchmarked import show, show_scenarios
from lorkd_deploy.cli.shared.options import Departments, Json, Quiet, Run, Tasks
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.errors import GateError, UsageError


def benchmark(
    run: Run,
    department: Departments = [],
    task: Tasks = [],
    target: Annotated[
        list[str],
        typer.Option(
            metavar="TARGET",
            help="Only engines of this target; may be repeated.",
            show_default="all",
        ),
    ] = [],
    teacher: Annotated[
        bool, typer.Option("--teacher/--no-teacher", help="Also measure the foundation model.")
    ] = True,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Number of rounds.", show_default="the recipe's"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Least length of a round, in seconds.",
            show_default="the recipe's",
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Least number of images per round.",
            show_default="the recipe's",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads per engine.", show_default="the recipe's"),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=3,
            help="How many times a disturbed round may be measured again.",
            show_default="the recipe's",
        ),
    ] = None,
    largest_batch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Search for the batch with the most images per second, up to this size; 0: don't.",
            show_default="the recipe's",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume a benchmark that was stopped; what it has measured is kept."
        ),
    ] = False,
    assertions: Annotated[
        list[str],
        typer.Option(
            "--assert",
            metavar="METRIC<NUMBER",
            help="Exit with code 3 if an expert's engine doesn't meet this; may be repeated. Runs "
            "ten rounds unless --rounds is given. An unknown metric lists them all; accuracies "
            "and drops are in percentage points.",
            show_default=False,
        ),
    ] = [],
    scenario: Annotated[
        list[str],
        typer.Option(
            metavar="S",
            help="Instead, let MLCommons LoadGen run an MLPerf scenario: single-stream, "
            "multi-stream, server or offline; may be repeated. Takes ten minutes per engine and "
            "mode (performance, accuracy).",
            show_default=False,
        ),
    ] = [],
    server_ms: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Latency, in ms, that 99 of 100 queries of the server scenario must stay within.",
            show_default="15",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Take seconds, not minutes; the figures are marked as quick."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency, throughput, memory and accuracy of every engine and of the teacher.

    Each engine runs in its own process, the rounds of all engines interleaved. Writes
    RUN/profile/profile.json.

    \b
    Examples:
      lorkd benchmark runs/small
      lorkd benchmark runs/small --department eye-clinic --threads 2
      lorkd benchmark runs/small --rounds 2 --seconds 0.2 --iterations 20
      lorkd benchmark runs/small --resume
      lorkd benchmark runs/small --assert 'p90_ms<8' --assert 'ratio_vs_teacher>5'
      lorkd benchmark runs/small --scenario single-stream --scenario offline --quick
    """
    from lorkd_deploy import benchmark as measure
    from lorkd_deploy import benchmark_scenarios

    output = Output(as_json=as_json, quiet=quiet)
    shared: dict[str, Any] = {
        "department": department,
        "task": task,
        "target": target,
        "teacher": teacher,
        "threads": threads,
        "largest_batch": largest_batch,
        "resume": resume,
        "quick": quick,
        "progress": output.progress(),
    }
    of_rounds: dict[str, Any] = {
        "rounds": rounds,
        "seconds": seconds,
        "iterations": iterations,
        "repeats": repeats,
    }
    if scenario:
        unfit = {f"--{name}": value for name, value in of_rounds.items()}
        _refuse(
            unfit | {"--assert": assertions or None}, "LoadGen's rules say how long a scenario runs"
        )
        if server_ms is not None:
            shared["server_ms"] = server_ms
        found = benchmark_scenarios(run, scenario, **shared)
        show_scenarios(output, found, scenario)
        output.text(f"next: lorkd report {run}")
        output.result(found)
        return
    _refuse({"--server-ms": server_ms}, "it belongs to --scenario server")
    profile = measure(run, **of_rounds, assertions=assertions, **shared)
    show(output, profile)
    failed = [entry for entry in profile.assertions if not entry.passed]
    for entry in failed:
        value = "not measured" if entry.value is None else f"{entry.value:.4g}"
        output.warning(f"{entry.engine}: {entry.text} does not hold: {value}")
    output.text(f"next: lorkd report {run}")
    output.result(profile)
    if failed:
        raise typer.Exit(GateError.exit_code)


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Raise `UsageError` if options were given that don't apply here."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(
            f"{' and '.join(names)} can't be used here: {why}",
            fix="`lorkd benchmark --help` shows the usage and examples",
        )
