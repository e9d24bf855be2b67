"""`lorkd benchmark --scenario`: MLPerf's scenarios by MLCommons LoadGen, on every engine."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import RuntimeUnavailableError, UsageError, unknown_name
from lorkd_deploy.machine.environment import Load, environment, identity, load_average
from lorkd_deploy.profiling.mlperf.library import write_library
from lorkd_deploy.profiling.mlperf.loadgen import available
from lorkd_deploy.profiling.mlperf.profile import (
    LOADGEN,
    SCENARIOS,
    Scenario,
    ScenarioProfile,
    ScenarioRun,
    read_scenarios,
)
from lorkd_deploy.profiling.mlperf.run import Plan, run_scenario
from lorkd_deploy.profiling.notes import state_of, unscored
from lorkd_deploy.profiling.planning.selection import EngineFilter
from lorkd_deploy.profiling.planning.setup import Setup, set_up
from lorkd_deploy.profiling.rounds.best_batch import best_batch
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.schema import write_part
from lorkd_deploy.storage import exclusive

SERVER_MS = 15.0  # MLPerf's bound for image classification in a data centre
QUICK_MS, SEARCH_MS, QUICK_SEARCH_MS = 1000, 3000, 300
QUICK_BATCH = 32
Runs = dict[tuple[str, Scenario], ScenarioRun]  # by engine and scenario
log = logging.getLogger(__name__)


def benchmark_scenarios(
    run: str | Path,
    scenario: Sequence[str],
    *,
    department: Sequence[str] = (),
    task: Sequence[str] = (),
    target: Sequence[str] = (),
    teacher: bool = True,
    threads: int | None = None,
    largest_batch: int | None = None,
    server_ms: float = SERVER_MS,
    resume: bool = False,
    quick: bool = False,
    progress: Progress | None = None,
) -> ScenarioProfile:
    """Let LoadGen test the exported engines of RUN; writes `RUN/profile/loadgen.json`.

    Each engine runs in a process of its own, LoadGen beside it: performance mode, then accuracy
    mode over the test images of the engine's tasks. `server_ms` is the latency that 99 of 100
    queries of the server scenario have to keep. `quick` takes seconds where LoadGen's rules want
    ten minutes, and says that it doesn't conform. Each result is written when it is there; those of
    other engines and scenarios of the same bundle are kept. `resume` measures only what isn't
    there yet: not what was measured by the same settings, engine files, test images, packages and
    machine. Raises as `benchmark` does, `RuntimeUnavailableError` without LoadGen.
    """
    wanted = _wanted(scenario)
    if available() is None:
        raise RuntimeUnavailableError(
            "MLCommons LoadGen is not installed",
            fix="pip install 'lorkd-deploy[loadgen]' (there are wheels for x86-64, Python 3.10 to "
            "3.13)",
        )
    largest = QUICK_BATCH if quick and largest_batch is None else largest_batch
    asked = EngineFilter(tuple(department), tuple(task), tuple(target), teacher)
    setup = set_up(run, asked, {"threads": threads, "largest_batch": largest})
    if raw := [engine.name for engine in setup.engines if engine.raw]:
        raise UsageError(
            f"LoadGen asks with network inputs, and what takes images is {', '.join(raw)}",
            fix="leave these out by --department, --task or --target, or export them without "
            "--option raw=true",
        )
    settings = {
        "server_ms": server_ms,
        "quick": quick,
        "quick_ms": QUICK_MS,
        "search_ms": QUICK_SEARCH_MS if quick else SEARCH_MS,
    }
    with exclusive(setup.run.profile, "benchmark"):
        return _profile(setup, wanted, settings, resume=resume, progress=progress)


def _profile(
    setup: Setup,
    wanted: Sequence[Scenario],
    settings: dict[str, Any],
    *,
    resume: bool,
    progress: Progress | None,
) -> ScenarioProfile:
    """Run the scenarios; what is there is written after each."""
    file, bundle, before = setup.run.profile / LOADGEN, setup.bundle, load_average()
    machine = environment().model_copy(update={"load": Load(before=before, after=before)})
    with tempfile.TemporaryDirectory() as scratch:
        library = write_library(Path(scratch), setup)
        notes = [*setup.notes, *unscored([t for t in setup.tasks if t.name not in library.tasks])]
        state = tuple(state_of(machine, setup.protocol))
        plan = Plan(library, setup.protocol, settings, identity(machine), state, setup.run.profile)
        runs = _earlier(file, bundle)
        done = dict(runs) if resume else {}
        for entry in _measure(setup.engines, wanted, plan, done, progress):
            runs.pop((entry.engine, entry.scenario), None)  # what is new comes last
            runs[entry.engine, entry.scenario] = entry
            load = Load(before=before, after=load_average())
            profile = ScenarioProfile(
                bundle_sha256=bundle.sha256,
                preprocess_sha256=bundle.manifest.preprocess_sha256,
                environment=machine.model_copy(update={"load": load}),
                runs=tuple(runs.values()),
                notes=(*notes, *_notes_of(tuple(runs.values()), plan.machine)),
            )
            write_part(file, profile)
    return profile


def _wanted(scenario: Sequence[str]) -> list[Scenario]:
    names = list(dict.fromkeys(scenario))
    for name in names:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, SCENARIOS)
    if not names:
        raise UsageError("no scenario was given", fix=f"scenarios are {', '.join(SCENARIOS)}")
    return [name for name in SCENARIOS if name in names]


def _earlier(file: Path, bundle: Bundle) -> Runs:
    """What earlier calls measured of this bundle."""
    if not file.is_file():
        return {}
    earlier = read_scenarios(file)
    if earlier.bundle_sha256 != bundle.sha256:
        return {}
    return {(entry.engine, entry.scenario): entry for entry in earlier.runs}


def _notes_of(runs: Sequence[ScenarioRun], machine: dict[str, Any]) -> Iterator[str]:
    """The notes of every run, each once, and that some are of another machine than the last."""
    for note, count in Counter(note for run in runs for note in run.notes).items():
        yield note if count == len(runs) else f"{note} ({count} of {len(runs)} scenario runs)"
    if others := sum(run.asked["machine"] != machine for run in runs):
        yield (
            f"{others} of {len(runs)} scenario runs were measured on another machine or with other "
            "packages than the last ones: don't compare them with those"
        )


def _measure(
    engines: Sequence[Artifact],
    wanted: Sequence[Scenario],
    plan: Plan,
    done: Mapping[tuple[str, Scenario], ScenarioRun],
    progress: Progress | None,
) -> Iterator[ScenarioRun]:
    """Every scenario on every engine; what is `done` as it is asked for now is not done again."""
    with bar(progress, "LoadGen's scenarios", len(engines) * len(wanted)) as shown:
        for engine in engines:
            batch = None
            for scenario in wanted:
                shown.advance(0, scenario=scenario, engine=engine.name)
                found = done.get((engine.name, scenario))
                if found is None or found.asked != plan.asked(engine):
                    batch = batch or _batch(engine, wanted, plan)
                    found = run_scenario(engine, plan, scenario, batch)
                else:
                    log.info("%s of %s was measured before", scenario, engine.name)
                yield found
                shown.advance(scenario=scenario, engine=engine.name)


def _batch(engine: Artifact, wanted: Sequence[Scenario], plan: Plan) -> int:
    """The largest batch of the scenarios in which the engine may choose one."""
    free = {"server", "offline"} & set(wanted)
    return best_batch(engine, plan.protocol) if free and plan.protocol.largest_batch else 1
