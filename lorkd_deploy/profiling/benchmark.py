"""`lorkd benchmark`: every engine of a run beside the foundation model, by one protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import UsageError
from lorkd_deploy.machine.environment import Load, environment, identity, load_average
from lorkd_deploy.profiling.colocation import colocated
from lorkd_deploy.profiling.gates import ROUNDS, check, parse_gates
from lorkd_deploy.profiling.kept_rounds import ROUNDS_FOLDER, Kept
from lorkd_deploy.profiling.measuring import Measured, check_writable, measure
from lorkd_deploy.profiling.notes import notes_of, unscored
from lorkd_deploy.profiling.process import WorkerError
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    CALLS,
    PROFILE,
    Comparison,
    Difference,
    EngineProfile,
    Profile,
    Score,
)
from lorkd_deploy.profiling.protocol import QUICK, Protocol, protocol_of
from lorkd_deploy.profiling.scoring import (
    TaskAnswers,
    answers,
    difference,
    open_task,
    score,
    tensors,
)
from lorkd_deploy.profiling.selection import is_teacher, select_engines, teacher_for
from lorkd_deploy.profiling.summary import comparison, engine_profile, single_calls
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import write_part
from lorkd_deploy.storage import exclusive, sha256_file, write_tensors

log = logging.getLogger(__name__)


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
    each of them holds stands in the profile. `resume` goes on with a benchmark that was stopped:
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
    folder = open_run(run)
    bundle = load_bundle(folder.bundle)
    recipe = parse_recipe(bundle.manifest.recipe, where=bundle.path)
    engines, notes = select_engines(
        folder.path, bundle, department=department, task=task, target=target, teacher=teacher
    )
    if gates and rounds is None:
        rounds = ROUNDS
    given: dict[str, float | None] = {
        "rounds": rounds,
        "seconds": seconds,
        "iterations": iterations,
        "threads": threads,
        "repeats": repeats,
        "largest_batch": largest_batch,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    protocol = protocol_of(
        recipe.benchmark,
        [engine.name for engine in engines],
        bundle.manifest.preprocess.size,
        chosen,
        quick=quick,
    )
    shown = progress or Silent()
    check_writable(folder.profile)
    with exclusive(folder.profile, "benchmark"):
        before = load_average()
        place, here = folder.profile / ROUNDS_FOLDER, identity(environment())
        kept = Kept(place, protocol, engines, here, resume=resume)
        protocol, measured, taken_over = measure(engines, kept, shown)
        beside, alone = colocated(engines, protocol)
        machine = environment().model_copy(
            update={"load": Load(before=before, after=load_average())}
        )
        scored, failed = _score(engines, recipe, bundle, protocol, shown)
        profiles, comparisons = _sum_up(engines, protocol, measured, scored)
        tasks = [task for task in engine_tasks(engines, bundle) if task.name not in scored]
        notes += unscored([task for task in tasks if task.name not in failed])
        notes += [*alone, *failed.values()]
        notes += notes_of(engines, profiles, protocol, machine, taken_over)
        write_tensors(folder.profile / CALLS, single_calls(measured))
        write_tensors(folder.profile / ANSWERS, tensors(scored.values()))
        profile = Profile(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            name=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            preprocess_sha256=bundle.manifest.preprocess_sha256,
            protocol=protocol,
            environment=machine,
            engines=profiles,
            comparisons=comparisons,
            calls_sha256=sha256_file(folder.profile / CALLS),
            answers_sha256=sha256_file(folder.profile / ANSWERS),
            assertions=(),
            together=beside,
            notes=tuple(notes),
        )
        profile = profile.model_copy(update={"assertions": tuple(check(gates, profile))})
        write_part(folder.profile / PROFILE, profile)
        kept.drop()
    return profile


def _score(
    engines: Sequence[Artifact],
    recipe: Recipe,
    bundle: Bundle,
    protocol: Protocol,
    progress: Progress,
) -> tuple[dict[str, TaskAnswers], dict[str, str]]:
    """Task → what each engine answers on its test split, for the tasks whose data is here; and, for
    the notes, task → that an engine failed. All engines of a task are open at once, which may not
    fit into memory: no reason to lose the times.
    """
    specs = {task.name: task for task in recipe.tasks}
    tasks = engine_tasks(engines, bundle)
    scored, failed = {}, {}
    progress.start("scoring the test images", len(tasks))
    try:
        for task in tasks:
            spec = specs[task.name]
            data = open_task(task, spec.data, recipe.data_folder)
            if data is not None:
                try:
                    scored[task.name] = answers(
                        task,
                        data,
                        engines,
                        bundle.manifest.preprocess,
                        threads=protocol.threads,
                        cpus=protocol.cpus,
                        threshold=spec.threshold,
                    )
                except WorkerError as exc:
                    log.warning("%s", exc)
                    failed[task.name] = (
                        f"speed only, no accuracy, of {task.name}: an engine failed on its images "
                        "while the others of the task were open"
                    )
            progress.advance(task=task.name)
    finally:
        progress.stop()
    return scored, failed


def _sum_up(
    engines: Sequence[Artifact],
    protocol: Protocol,
    measured: Measured,
    scored: dict[str, TaskAnswers],
) -> tuple[tuple[EngineProfile, ...], tuple[Comparison, ...]]:
    profiles = {
        engine.name: engine_profile(
            engine, protocol, measured[engine.name], list(_scores(engine, scored))
        )
        for engine in engines
    }
    comparisons = []
    for expert in engines:
        beside = teacher_for(expert, engines)
        if not is_teacher(expert) and beside is not None:
            differences = _differences(expert, beside, scored)
            comparisons.append(
                comparison(profiles[expert.name], profiles[beside.name], differences)
            )
    return tuple(profiles.values()), tuple(comparisons)


def _scores(engine: Artifact, scored: dict[str, TaskAnswers]) -> Iterator[Score]:
    for given in scored.values():
        if engine.name in given.probabilities:
            yield score(given, engine.name)


def _differences(
    expert: Artifact, teacher: Artifact, scored: dict[str, TaskAnswers]
) -> Iterator[Difference]:
    for given in scored.values():
        if expert.name in given.probabilities and teacher.name in given.probabilities:
            yield difference(given, expert.name, teacher.name)


def engine_tasks(engines: Sequence[Artifact], bundle: Bundle) -> list[TaskEntry]:
    """The tasks of the experts among `engines`, in the recipe's order."""
    wanted = {t.name for engine in engines if not is_teacher(engine) for t in engine.tasks}
    return [task for task in bundle.manifest.tasks if task.name in wanted]
