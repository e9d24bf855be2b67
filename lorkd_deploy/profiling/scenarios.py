"""`lorkd benchmark --scenario`: MLPerf's scenarios by MLCommons LoadGen, on every engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy import metrics
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import RuntimeUnavailableError, UsageError, unknown_name
from lorkd_deploy.profiling.batches import best_batch
from lorkd_deploy.profiling.benchmark import engine_tasks, protocol_of
from lorkd_deploy.profiling.environment import environment, load_average
from lorkd_deploy.profiling.loadgen import available
from lorkd_deploy.profiling.measuring import check_writable
from lorkd_deploy.profiling.notes import unscored
from lorkd_deploy.profiling.process import EngineProcess
from lorkd_deploy.profiling.profile import Load, Protocol
from lorkd_deploy.profiling.scenario_inputs import Library, Place, write_library
from lorkd_deploy.profiling.scenario_log import read_answers, read_log
from lorkd_deploy.profiling.scenario_profile import (
    LOADGEN,
    LOGS,
    SCENARIOS,
    Scenario,
    ScenarioProfile,
    ScenarioRun,
    ScenarioScore,
    read_scenarios,
)
from lorkd_deploy.profiling.scoring import interval, where_defined
from lorkd_deploy.profiling.selection import is_teacher, select_engines
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import open_run
from lorkd_deploy.storage import canonical_json, exclusive, write_atomic

SERVER_MS = 15.0  # MLPerf's bound for image classification in a data centre
QUICK_MS, SEARCH_MS, QUICK_SEARCH_MS = 1000, 3000, 300
QUICK_BATCH = 32
# Scenario → MLPerf's metric, the keys of LoadGen's log that hold it, its unit, and how many of
# the log's make one of the unit. The first key that isn't 0 counts: early stopping's estimate.
_METRICS: dict[str, tuple[str, tuple[str, ...], str, float]] = {
    "single-stream": (
        "90th percentile of the latency",
        ("early_stopping_latency_ss", "result_90.00_percentile_latency_ns"),
        "ms",
        1e6,
    ),
    "multi-stream": (
        "99th percentile of the latency of 8 images",
        ("early_stopping_latency_ms", "result_99.00_percentile_per_query_latency_ns"),
        "ms",
        1e6,
    ),
    "server": ("queries within the bound", ("result_completed_samples_per_sec",), "/s", 1),
    "offline": ("throughput", ("result_samples_per_second",), "/s", 1),
}
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")


@dataclass(frozen=True)
class _Plan:
    """What every test of one call shares; `settings` go to `loadgen.run`."""

    library: Library
    protocol: Protocol
    settings: dict[str, Any]
    profile: Path


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
    quick: bool = False,
    progress: Progress | None = None,
) -> ScenarioProfile:
    """Let LoadGen test the exported engines of RUN; writes `RUN/profile/loadgen.json`.

    Each engine runs in a process of its own, LoadGen beside it: performance mode, then accuracy
    mode over the test images of the engine's tasks. `server_ms` is the latency that 99 of 100
    queries of the server scenario have to keep. `quick` takes seconds where LoadGen's rules want
    ten minutes, and says that it doesn't conform. Results of other engines and scenarios of the
    same bundle are kept. Raises as `benchmark` does, `RuntimeUnavailableError` without LoadGen.
    """
    wanted = _wanted(scenario)
    if available() is None:
        raise RuntimeUnavailableError(
            "MLCommons LoadGen is not installed",
            fix="pip install 'lorkd-deploy[loadgen]' (there are wheels for x86-64, Python 3.10 to "
            "3.13)",
        )
    folder = open_run(run)
    bundle = load_bundle(folder.bundle)
    recipe = parse_recipe(bundle.manifest.recipe, where=bundle.path)
    engines, notes = select_engines(
        folder.path, bundle, department=department, task=task, target=target, teacher=teacher
    )
    largest = QUICK_BATCH if quick and largest_batch is None else largest_batch
    given = {"threads": threads, "largest_batch": largest}
    protocol = protocol_of(
        bundle, recipe, engines, {k: v for k, v in given.items() if v is not None}
    )
    settings = {
        "server_ms": server_ms,
        "quick": quick,
        "quick_ms": QUICK_MS,
        "search_ms": QUICK_SEARCH_MS if quick else SEARCH_MS,
    }
    shown = progress or Silent()
    check_writable(folder.profile)
    with exclusive(folder.profile, "benchmark"), tempfile.TemporaryDirectory() as scratch:
        before = load_average()
        library = write_library(
            Path(scratch) / "inputs.npy", engine_tasks(engines, bundle), recipe, bundle, protocol
        )
        plan = _Plan(library, protocol, settings, folder.profile)
        measured = list(_measure(engines, wanted, plan, shown))
        machine = environment().model_copy(
            update={"load": Load(before=before, after=load_average())}
        )
        missing = [t for t in engine_tasks(engines, bundle) if t.name not in library.tasks]
        profile = ScenarioProfile(
            bundle_sha256=bundle.sha256,
            preprocess_sha256=bundle.manifest.preprocess_sha256,
            environment=machine,
            runs=(*_kept(folder.profile / LOADGEN, bundle, measured), *measured),
            notes=(*notes, *unscored(missing)),
        )
        write_atomic(folder.profile / LOADGEN, canonical_json(profile.model_dump(mode="json")))
    return profile


def _wanted(scenario: Sequence[str]) -> list[Scenario]:
    names = list(dict.fromkeys(scenario))
    for name in names:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, SCENARIOS)
    if not names:
        raise UsageError("no scenario was given", fix=f"scenarios are {', '.join(SCENARIOS)}")
    return [name for name in SCENARIOS if name in names]


def _kept(file: Path, bundle: Bundle, measured: Sequence[ScenarioRun]) -> list[ScenarioRun]:
    """What an earlier call measured of this bundle and this one did not measure again."""
    if not file.is_file():
        return []
    earlier = read_scenarios(file)
    if earlier.bundle_sha256 != bundle.sha256:
        return []
    again = {(entry.engine, entry.scenario) for entry in measured}
    return [entry for entry in earlier.runs if (entry.engine, entry.scenario) not in again]


def _measure(
    engines: Sequence[Artifact], wanted: Sequence[Scenario], plan: _Plan, progress: Progress
) -> Iterator[ScenarioRun]:
    progress.start("LoadGen's scenarios", len(engines) * len(wanted))
    try:
        for engine in engines:
            batch = 1
            if {"server", "offline"} & set(wanted) and plan.protocol.largest_batch:
                batch = best_batch(engine, plan.protocol)
            for scenario in wanted:
                progress.advance(0, scenario=scenario, engine=engine.name)
                yield _one(engine, plan, {"scenario": scenario, "batch": batch})
                progress.advance(scenario=scenario, engine=engine.name)
    finally:
        progress.stop()


def _one(engine: Artifact, plan: _Plan, given: dict[str, Any]) -> ScenarioRun:
    """Both modes of one scenario on one engine, in a fresh process; LoadGen's logs stay."""
    request, protocol = plan.settings | given, plan.protocol
    logs = Path(LOGS) / request["scenario"] / engine.name
    place = plan.profile / logs
    shutil.rmtree(place, ignore_errors=True)
    start, stop, places = plan.library.of(engine)
    with EngineProcess(engine, protocol.threads, protocol.cpus) as process:
        process.open()
        said: dict[str, Any] = {}
        for mode in ("performance", "accuracy") if places else ("performance",):
            (place / mode).mkdir(parents=True)
            answer, _ = process.ask(
                "scenario",
                **request,
                mode=mode,
                inputs=str(plan.library.file),
                start=start,
                stop=stop,
                logs=str((place / mode).absolute()),
            )
            said = said or answer
    log = read_log(place / "performance")
    scores = tuple(_scores(engine, places, stop - start, place / "accuracy"))
    metric, keys, unit, per = _METRICS[request["scenario"]]
    because = tuple(_because(log, request, places))
    return ScenarioRun(
        engine=engine.name,
        kind="teacher" if is_teacher(engine) else "expert",
        department=None if is_teacher(engine) else engine.department,
        tasks=tuple(task.name for task in engine.tasks),
        target=engine.target,
        precision=engine.precision,
        scenario=request["scenario"],
        metric=metric,
        value=next(float(log[key]) for key in keys if log.get(key)) / per,
        unit=unit,
        result=log["result_validity"],
        conforms=not because,
        because=because,
        quick=request["quick"],
        queries=log["result_query_count"],
        samples="test images" if places else "generated images",
        min_duration_ms=log["effective_min_duration_ms"],
        min_queries=log["effective_min_query_count"],
        performance_samples=log["effective_performance_sample_count"],
        largest_batch={"single-stream": 1, "multi-stream": 8}.get(
            request["scenario"], request["batch"]
        ),
        server_ms=request["server_ms"] if request["scenario"] == "server" else None,
        lowered=said["lowered"],
        percentiles=_percentiles(log),
        scores=scores,
        threads=protocol.threads,
        cpus=protocol.cpus,
        loadgen=metadata.version("mlcommons-loadgen"),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        logs=logs.as_posix(),
    )


def _because(
    log: dict[str, Any], request: dict[str, Any], places: dict[str, Place]
) -> Iterator[str]:
    """Why the run doesn't conform to MLPerf's rules."""
    if request["quick"]:
        yield f"a quick run of {request['quick_ms'] / 1000:g} s, LoadGen's rules want 600 s"
    if not places:
        yield "the test images are not here: no accuracy mode, and generated images"
    if log["result_validity"] != "VALID":
        reason = str(log.get("result_invalid_reason") or "").strip()
        early = " ".join(str(log.get("early_stopping_result") or "").replace("*", "").split())
        yield f"LoadGen calls the result invalid: {reason or early or 'see its log'}"


def _percentiles(log: dict[str, Any]) -> dict[str, float]:
    found = {}
    for mark in _PERCENTILES:
        for name in ("per_query_latency_ns", "latency_ns"):
            value = log.get(f"result_{mark}_percentile_{name}")
            if value is not None and mark not in found:
                found[mark] = float(value) / 1e6
    return {f"{float(mark):g}": value for mark, value in found.items()}


def _scores(
    engine: Artifact, places: dict[str, Place], images: int, logs: Path
) -> Iterator[ScenarioScore]:
    """Accuracy of each of the engine's tasks, from LoadGen's own log of the answers."""
    logits = read_answers(logs, images) if places else None
    for task in engine.tasks:
        place = places.get(task.name)
        if place is None or logits is None:
            continue
        rows = logits[place.start : place.stop, task.start : task.stop]
        probabilities = metrics.probabilities(np.asarray(rows), task.kind)
        yield ScenarioScore(
            task=task.name,
            images=len(place.labels),
            accuracy=interval(metrics.accuracy, place.labels, probabilities),
            auc=where_defined(metrics.auc, place.labels, probabilities),
        )
