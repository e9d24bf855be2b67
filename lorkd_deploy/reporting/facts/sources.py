"""What the report reads: the bundle, the teacher's, the engines' records and the profile.

Only the bundle has to be there. Everything else may be missing, and is then said to be.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lorkd_deploy.arrays import I64
from lorkd_deploy.bundle.manifest import MANIFEST, Manifest, TaskEntry
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.datacheck.result import DataCheck, read_check
from lorkd_deploy.deploy.artifact import Artifact, find_artifacts
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.mlperf.profile import LOADGEN, ScenarioProfile, read_scenarios
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    CALLS,
    PROFILE,
    BatchRatio,
    Comparison,
    Difference,
    EngineProfile,
    Profile,
    Score,
    read_profile,
)
from lorkd_deploy.run import Run
from lorkd_deploy.storage import read_tensors, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One expert's engine beside the foundation model; what was not measured is None."""

    task: TaskEntry
    expert: EngineProfile | None = None
    teacher: EngineProfile | None = None
    comparison: Comparison | None = None
    artifact: Artifact | None = None

    @property
    def target(self) -> str:
        """`onnx fp32`, or nothing where no engine was exported."""
        engine = self.expert or self.artifact
        return f"{engine.target} {engine.precision}" if engine else ""

    @property
    def bytes(self) -> int | None:
        """Size of the engine's files, measured or only exported."""
        engine = self.expert or self.artifact
        return engine.bytes if engine else None

    @property
    def ratio(self) -> BatchRatio | None:
        """Teacher's p50 over expert's p50 at the smallest batch that both ran."""
        return self.comparison.ratio if self.comparison else None

    @property
    def difference(self) -> Difference | None:
        """Expert minus teacher on the task's test split."""
        return self.comparison.difference(self.task.name) if self.comparison else None

    @property
    def weak_teacher(self) -> bool:
        """Whether the teacher's accuracy isn't above the majority class: a gain over it is none."""
        score = self.score(self.teacher)
        return score is not None and not score.skilled

    def score(self, engine: EngineProfile | None) -> Score | None:
        """The task's score through `engine` (the expert's or the teacher's)."""
        return engine.score(self.task.name) if engine else None


@dataclass(frozen=True)
class Sources:
    """Everything about one run that the report may say."""

    bundle: Bundle
    teacher: Bundle | None
    artifacts: tuple[Artifact, ...]
    profile: Profile | None
    calls: dict[str, I64]
    answers: dict[str, npt.NDArray[Any]]
    scenarios: ScenarioProfile | None = None
    check: DataCheck | None = None

    @property
    def manifest(self) -> Manifest:
        """The decomposition's manifest."""
        return self.bundle.manifest

    def tasks(self, department: str) -> list[TaskEntry]:
        """A department's tasks, in the recipe's order."""
        return [task for task in self.manifest.tasks if task.department == department]

    def pairs(self, department: str | None = None) -> list[Pair]:
        """The engines of all tasks, or of a department's, beside the teacher, in recipe order."""
        tasks = self.manifest.tasks if department is None else self.tasks(department)
        return [pair for task in tasks for pair in self.pairs_of(task)]

    def pairs_of(self, task: TaskEntry) -> list[Pair]:
        """Each engine of one task beside the teacher; a single empty pair where it has none."""
        exported = {a.name: a for a in self.artifacts if a.engine == task.name}
        measured = self.profile.engines if self.profile else ()
        by_name = {engine.engine: engine for engine in measured}
        compared = self.profile.comparisons if self.profile else ()
        by_engine = {entry.engine: entry for entry in compared}
        pairs = []
        for expert in measured:
            if expert.kind == "expert" and task.name in expert.tasks:
                comparison = by_engine.get(expert.engine)
                teacher = by_name.get(comparison.teacher) if comparison else None
                artifact = exported.pop(expert.engine, None)
                pairs.append(Pair(task, expert, teacher, comparison, artifact))
        pairs += [Pair(task, artifact=artifact) for artifact in exported.values()]
        return pairs or [Pair(task)]

    def engines(self, department: str) -> list[EngineProfile]:
        """The measured engines of a department, each once; those of the teacher come first."""
        return [engine for of_model in by_model(self.pairs(department)) for engine in of_model]

    def teachers(self) -> list[EngineProfile]:
        """Every engine of the foundation model that was measured."""
        engines = self.profile.engines if self.profile else ()
        return [engine for engine in engines if engine.kind == "teacher"]


def by_model(pairs: Sequence[Pair]) -> tuple[list[EngineProfile], list[EngineProfile]]:
    """The measured engines of the teacher and of the experts, each once: several experts' engines
    may stand beside one of the teacher, or beside none."""
    teachers = {pair.teacher.engine: pair.teacher for pair in pairs if pair.teacher}
    experts = {pair.expert.engine: pair.expert for pair in pairs if pair.expert}
    return list(teachers.values()), list(experts.values())


def read_sources(run: Run) -> Sources:
    """Read what RUN holds; hashes are checked.

    Raises `BundleError` where there is no whole bundle, `ArtifactError` for a damaged record of
    an engine, `LorkdError` for a damaged profile or one that was measured on another bundle.
    """
    bundle = load_bundle(run.bundle)
    teacher = load_bundle(run.teacher) if (run.teacher / MANIFEST).exists() else None
    profile = None
    if (file := run.profile / PROFILE).exists():
        profile = read_profile(file)
        if profile.bundle_sha256 != bundle.sha256:
            raise LorkdError(
                "the profile was measured on another bundle than the one that is here",
                where=file,
                fix="run `lorkd export` and `lorkd benchmark` again",
            )
    scenarios = None
    if (file := run.profile / LOADGEN).exists():
        scenarios = read_scenarios(file)
        if scenarios.bundle_sha256 != bundle.sha256:
            scenarios = None  # of an earlier decomposition; unlike the profile's, no one's loss
    return Sources(
        bundle,
        teacher,
        tuple(find_artifacts(run.path)),
        profile,
        _beside(run.profile / CALLS, profile.calls_sha256 if profile else None),
        _beside(run.profile / ANSWERS, profile.answers_sha256 if profile else None),
        scenarios,
        read_check(run.path),
    )


def _beside(file: Path, sha256: str | None) -> dict[str, npt.NDArray[Any]]:
    """Single calls or answers, where they lie beside the profile that they belong to."""
    if sha256 is None or not file.exists():
        return {}
    if sha256_file(file) != sha256:
        log.warning("%s is not the one that was measured: what it would show is left out", file)
        return {}
    return read_tensors(file)
