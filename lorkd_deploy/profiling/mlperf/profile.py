"""What `RUN/profile/loadgen.json` says: every scenario that LoadGen ran on every engine.

LoadGen's own logs lie below `RUN/profile/loadgen/SCENARIO/ENGINE/performance` and `…/accuracy`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.environment import Environment
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.schema import Part, read_part

SCHEMA = 2  # 2: with a digest of itself
LOADGEN = "loadgen.json"
LOGS = "loadgen"  # the folder below RUN/profile
Scenario = Literal["single-stream", "multi-stream", "server", "offline"]
SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")


class ScenarioScore(Part):
    """One task's test images through LoadGen's accuracy mode, intervals by resampling images."""

    task: str
    images: int
    accuracy: Interval
    auc: Interval | None


class ScenarioRun(Part):
    """One scenario on one engine.

    `metric` is what MLPerf reports of the scenario, `value` that: the 90th percentile of the
    latency, ms (single-stream), the 99th of a query of eight images, ms (multi-stream), the
    queries a second that were answered within `server_ms` in 99 of 100 cases (server), images a
    second (offline). `result` is LoadGen's own verdict on the run. It conforms where LoadGen's
    built-in rules were kept, both modes ran on test images and the result is VALID; else `because`
    says why not. `percentiles` are those of a query's latency, ms. `lowered` is how often the
    server's rate had to be taken back after the search. `logs` is the folder below RUN/profile.
    `asked` is all that the figures depend on, by which `--resume` knows them again. `notes` say
    what of the machine's state may have disturbed it.
    """

    engine: str
    kind: Literal["expert", "teacher"]
    department: str | None
    tasks: tuple[str, ...]
    target: str
    precision: str
    scenario: Scenario
    metric: str
    value: float
    unit: str
    result: Literal["VALID", "INVALID"]
    conforms: bool
    because: tuple[str, ...]
    quick: bool
    queries: int
    samples: Literal["test images", "generated images"]
    min_duration_ms: int
    min_queries: int
    performance_samples: int
    largest_batch: int
    server_ms: float | None
    lowered: int
    percentiles: dict[str, float]
    scores: tuple[ScenarioScore, ...]
    threads: int
    cpus: tuple[int, ...] | None
    loadgen: str
    measured: str
    logs: str
    asked: dict[str, Any]
    notes: tuple[str, ...] = ()


class ScenarioProfile(Part):
    """Everything that LoadGen measured of one bundle's engines; later runs replace earlier ones of
    the same engine and scenario. `environment` is that of the last call, `notes` are its and those
    of every run that is here."""

    schema_version: int = SCHEMA
    bundle_sha256: str
    preprocess_sha256: str
    environment: Environment
    runs: tuple[ScenarioRun, ...]
    notes: tuple[str, ...] = ()


def read_scenarios(path: Path) -> ScenarioProfile:
    """Read `loadgen.json`; `LorkdError` where it is missing, damaged or of another schema."""
    return read_part(path, ScenarioProfile, LorkdError, "run `lorkd benchmark --scenario` again")
