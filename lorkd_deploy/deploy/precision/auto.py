"""`--precision auto`: build what the target can do here, measure it, and take the fastest.

Nothing is guessed from the precision's name: int8 is slower than float32 for many a small network,
and a CPU may compute fp16 by converting it. Accuracy is the validation split's through the engine.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, open_engine
from lorkd_deploy.deploy.candidates import Candidate, Choice, drop, judged
from lorkd_deploy.deploy.precision.validation import Validation, accuracies
from lorkd_deploy.errors import GateError, LorkdError
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.runtime import Runner, RunOptions

SECONDS = 0.3  # per candidate and round, at least
WARM_UP = 5  # calls before a round's first timed one, for caches that the others have taken
LEAST = 5  # timed calls per round
Make = Callable[[str, Path], Artifact]  # a precision's engine, built into a folder and proven


def fastest_engine(
    make: Make,
    precisions: Sequence[str],
    bundle: Bundle,
    *,
    splits: list[Validation],
    work: Path,
    max_drop: float,
) -> Artifact:
    """The engine to keep, with the table of candidates in it; its files lie in its `folder`.

    Every candidate is built below `work`. Raises what `make` raises for fp32, which all others are
    compared with, and `GateError` where its parity fails.
    """
    made: dict[str, Artifact] = {}
    table: list[Candidate] = []
    for precision in precisions:
        folder = work / precision
        folder.mkdir()
        try:
            artifact = make(precision, folder)
        except LorkdError as exc:
            if precision == BASELINE:
                raise
            table.append(Candidate(precision=precision, status="not built", reason=exc.what))
            continue
        if artifact.parity.status == "passed":
            made[precision] = artifact.model_copy(update={"folder": folder})
        elif precision == BASELINE:
            raise GateError(
                f"the fp32 engine of {artifact.engine} is not the model it came from:\n    "
                + "\n    ".join(artifact.parity.reasons),
                where=bundle.path,
                fix="without fp32 there is nothing to compare the others with; if the bundle is "
                "whole (`lorkd inspect`), report this",
            )
        table.append(_unmeasured(artifact))
    return _taken(made, table, bundle, splits, max_drop)


def _unmeasured(artifact: Artifact) -> Candidate:
    failed = artifact.parity.status != "passed"
    return Candidate(
        precision=artifact.precision,
        status="parity failed" if failed else "not taken",
        reason="; ".join(artifact.parity.reasons) if failed else None,
        parity=artifact.parity,
        bytes=artifact.bytes,
    )


def _taken(
    made: dict[str, Artifact],
    table: list[Candidate],
    bundle: Bundle,
    splits: list[Validation],
    max_drop: float,
) -> Artifact:
    """Measure all that were made side by side, and put the table into the one that is taken."""
    spec = bundle.recipe.benchmark
    size = bundle.manifest.preprocess.size
    one = bundle.manifest.preprocess.normalise(parity_inputs(1, size, spec.seed))
    with ExitStack() as stack:
        runners = {
            precision: stack.enter_context(open_engine(artifact, RunOptions(threads=spec.threads)))
            for precision, artifact in made.items()
        }
        right = accuracies(splits, bundle, runners)
        times = interleaved(runners, one, rounds=spec.rounds, seconds=SECONDS)
    measured = [
        entry.model_copy(
            update={
                "accuracy": right[entry.precision],
                "drop": drop(right[BASELINE], right[entry.precision]),
                "p50_ms": statistics.median(times[entry.precision]),
                "rounds_ms": times[entry.precision],
            }
        )
        if entry.precision in made
        else entry
        for entry in table
    ]
    choice = Choice(
        candidates=judged(measured, max_drop),
        max_drop=max_drop,
        images={validation.task.name: len(validation.split) for validation in splits},
        rounds=spec.rounds,
        seconds=SECONDS,
        threads=spec.threads,
    )
    return made[choice.taken].model_copy(update={"choice": choice})


def interleaved(
    runners: Mapping[str, Runner], batch: F32, *, rounds: int, seconds: float
) -> dict[str, tuple[float, ...]]:
    """Each runner's median call in ms, one per round, in which it is called for `seconds` at least.

    This is for choosing, not for a report, which `lorkd benchmark` measures with a process for each
    engine.
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
