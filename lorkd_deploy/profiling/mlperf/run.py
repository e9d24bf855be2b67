"""One of MLPerf's scenarios on one engine, and what LoadGen's logs say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.metrics.interval import around, where_defined
from lorkd_deploy.profiling.mlperf.library import Library, Place
from lorkd_deploy.profiling.mlperf.log import read_answers, read_log
from lorkd_deploy.profiling.mlperf.profile import LOGS, Scenario, ScenarioRun, ScenarioScore
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.planning.selection import is_teacher
from lorkd_deploy.profiling.worker.process import EngineProcess
from lorkd_deploy.storage import folder_atomic

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
class Plan:
    """What every test of one call shares.

    `settings` go to `loadgen.run`, `machine` is `environment.identity`'s, `notes` are of the
    machine's state, `profile` is RUN/profile.
    """

    library: Library
    protocol: Protocol
    settings: dict[str, Any]
    machine: dict[str, Any]
    notes: tuple[str, ...]
    profile: Path

    def asked(self, engine: Artifact) -> dict[str, Any]:
        """All that a figure of `engine` depends on, as JSON; `--resume` keeps it if equal."""
        return {
            **self.settings,
            "threads": self.protocol.threads,
            "cpus": list(self.protocol.cpus or ()),
            "largest_batch": self.protocol.largest_batch,
            "images": sorted(self.library.of(engine)[2]),
            "files": [file.sha256 for file in engine.files],
            "loadgen": metadata.version("mlcommons-loadgen"),
            "machine": self.machine,
        }


def run_scenario(engine: Artifact, plan: Plan, scenario: Scenario, batch: int) -> ScenarioRun:
    """Both modes of one scenario on one engine, in a fresh process; LoadGen's logs stay.

    Raises `WorkerError`; the logs of an earlier run are whole then.
    """
    logs = Path(LOGS) / scenario / engine.name
    with folder_atomic(plan.profile / logs) as place:
        return _run(engine, plan, {"scenario": scenario, "batch": batch}, logs, place)


def _run(
    engine: Artifact, plan: Plan, given: dict[str, Any], logs: Path, place: Path
) -> ScenarioRun:
    request, protocol = plan.settings | given, plan.protocol
    start, stop, places = plan.library.of(engine)
    modes = ("performance", "accuracy") if places else ("performance",)
    lowered = _test(engine, plan, request, [place / mode for mode in modes])
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
        lowered=lowered,
        percentiles=_percentiles(log),
        scores=scores,
        threads=protocol.threads,
        cpus=protocol.cpus,
        loadgen=metadata.version("mlcommons-loadgen"),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        logs=logs.as_posix(),
        notes=plan.notes,
        asked=plan.asked(engine),
    )


def _test(engine: Artifact, plan: Plan, request: dict[str, Any], modes: Sequence[Path]) -> int:
    """Let LoadGen test the engine in each of the modes, whose logs go to a folder of that name.

    → how often the server scenario's rate had to be lowered.
    """
    start, stop, _ = plan.library.of(engine)
    lowered = []
    with EngineProcess(engine, plan.protocol.threads, plan.protocol.cpus) as process:
        process.open()
        for logs in modes:
            logs.mkdir(parents=True)
            answer, _ = process.ask(
                "scenario",
                **request,
                mode=logs.name,
                inputs=str(plan.library.file(engine)),
                start=start,
                stop=stop,
                logs=str(logs.absolute()),
            )
            lowered.append(answer["lowered"])
    return int(lowered[0])


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
            accuracy=around(metrics.accuracy, place.labels, probabilities),
            auc=where_defined(metrics.auc, place.labels, probabilities),
        )
