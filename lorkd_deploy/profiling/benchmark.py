"""`lorkd benchmark`: every engine of a run beside the foundation model, by one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from lorkd_deploy.errors import UsageError
from lorkd_deploy.machine.environment import Load, environment, identity, load_average
from lorkd_deploy.profiling.colocation import colocated
from lorkd_deploy.profiling.gates import ROUNDS, Gate, check, parse_gates
from lorkd_deploy.profiling.layers import layered
from lorkd_deploy.profiling.notes import notes_of, unscored
from lorkd_deploy.profiling.planning.protocol import QUICK
from lorkd_deploy.profiling.planning.selection import EngineFilter
from lorkd_deploy.profiling.planning.setup import Setup, set_up
from lorkd_deploy.profiling.profile import ANSWERS, CALLS, PROFILE, Profile
from lorkd_deploy.profiling.rounds.measure import measure
from lorkd_deploy.profiling.rounds.store import ROUNDS_FOLDER, KeptRounds
from lorkd_deploy.profiling.scoring import score_tasks, tensors
from lorkd_deploy.profiling.summary import single_calls, sum_up
from lorkd_deploy.progress import Progress
from lorkd_deploy.schema import write_part
from lorkd_deploy.storage import exclusive, sha256_file, write_tensors


def benchmark(
    run: str | Path,
    *,
    department: Sequence[str] = (),
    task: Sequence[str] = (),
    target: Sequence[str] = (),
    teacher: bool = True,
    rounds: int | None = None,
    seconds: float | None = None,
    iterations: int | None = None,
    threads: int | None = None,
    repeats: int | None = None,
    largest_batch: int | None = None,
    assertions: Sequence[str] = (),
    resume: bool = False,
    quick: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Measure the exported engines of RUN and of its teacher; writes `RUN/profile/profile.json`.

    `department`, `task` and `target` choose engines (all, if empty). What is None is as the recipe
    says (`benchmark:`); with `assertions` (`p90_ms<8`; see `figures.FIGURES`) ten rounds. Whether
    each of them holds stands in the profile. `resume` resumes a benchmark that was stopped:
    its rounds are kept until it has ended. `quick` replaces what is None by `QUICK`, which is too
    little for any claim, and says so in the profile. Raises `ArtifactError` where there is nothing
    to measure or the teacher is missing, `UsageError` for a name that doesn't exist, more threads
    than CPUs or another benchmark to resume (other options, engines, packages or machine),
    `WorkerError` for an engine that fails in a round, `LorkdError` where RUN can't be written. An
    earlier profile stays as it was then.
    """
    gates = parse_gates(assertions)
    if gates and quick and rounds is None:
        raise UsageError(
            f"a quick benchmark of {QUICK['rounds']} rounds decides nothing",
            fix=f"leave out --quick, or give --rounds too (--assert alone takes {ROUNDS})",
        )
    given = {
        "rounds": ROUNDS if gates and rounds is None else rounds,
        "seconds": seconds,
        "iterations": iterations,
        "threads": threads,
        "repeats": repeats,
        "largest_batch": largest_batch,
    }
    wanted = EngineFilter(tuple(department), tuple(task), tuple(target), teacher)
    setup = set_up(run, wanted, given, quick=quick)
    with exclusive(setup.run.profile, "benchmark"):
        return _profile(setup, gates, resume=resume, progress=progress)


def _profile(
    setup: Setup, gates: Sequence[Gate], *, resume: bool, progress: Progress | None
) -> Profile:
    """Measure, score and write; the rounds are kept until all is written."""
    folder, engines, before = setup.run.profile, setup.engines, load_average()
    here = identity(environment())
    kept = KeptRounds(folder / ROUNDS_FOLDER, setup.protocol, engines, here, resume=resume)
    rounds = measure(engines, kept, progress)
    setup = replace(setup, protocol=rounds.protocol)
    together, not_together = colocated(engines, setup.protocol)
    machine = environment().model_copy(update={"load": Load(before=before, after=load_average())})
    scored, failed = score_tasks(setup, progress)
    profiles, comparisons = sum_up(setup, rounds.of_engines, scored)
    told = layered(engines, setup.protocol)
    profiles = tuple(
        entry.model_copy(update={"layers": told.get(entry.engine, ())}) for entry in profiles
    )
    not_here = [task for task in setup.tasks if task.name not in {*scored, *failed}]
    write_tensors(folder / CALLS, single_calls(rounds.of_engines))
    write_tensors(folder / ANSWERS, tensors(scored.values()))
    profile = Profile(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=setup.bundle.manifest.name,
        bundle_sha256=setup.bundle.sha256,
        preprocess_sha256=setup.bundle.manifest.preprocess_sha256,
        protocol=setup.protocol,
        environment=machine,
        engines=profiles,
        comparisons=comparisons,
        calls_sha256=sha256_file(folder / CALLS),
        answers_sha256=sha256_file(folder / ANSWERS),
        assertions=(),
        together=together,
        notes=(
            *setup.notes,
            *unscored(not_here),
            *not_together,
            *failed.values(),
            *notes_of(engines, profiles, setup.protocol, machine, rounds.resumed),
        ),
    )
    profile = profile.model_copy(update={"assertions": tuple(check(gates, profile))})
    write_part(folder / PROFILE, profile)
    kept.drop()
    return profile
