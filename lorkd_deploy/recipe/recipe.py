"""The recipe itself: departments, their tasks with their data, and a section for each stage."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from lorkd_deploy.data import DataSpec
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe.engines import (
    BenchmarkSpec,
    CalibrationSpec,
    ExportSpec,
    ParitySpec,
    ReportSpec,
    SafetySpec,
)
from lorkd_deploy.recipe.networks import ExpertSpec, Rank, StudentSpec, TeacherSpec
from lorkd_deploy.recipe.training import TrainSpec, TransferSpec
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import NAME, canonical_json, sha256_bytes

RESERVED = {"teacher"}  # RUN/export/teacher holds the foundation model's engines


def _checked_name(value: str) -> str:
    if not NAME.match(value):
        raise ValueError("a name has lower-case letters, digits, '-' and '_', 63 at most")
    if value in RESERVED:
        raise ValueError(f"the name {value!r} is reserved")
    return value


Name = Annotated[str, AfterValidator(_checked_name)]


class TaskSpec(Part):
    """One label set and one expert."""

    name: Name
    data: DataSpec
    group_pattern: str | None = Field(
        default=None,
        description="pattern whose first brackets find the patient or case in each file's path, "
        "for `lorkd data check`: 'patient(\\d+)_'",
    )
    rank: Rank | None = Field(default=None, description="overrides experts.rank for this task")
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="probability from which an answer is positive, for sensitivity and "
        "specificity; unset: chosen on the validation split (Youden)",
    )
    finding: str | None = Field(
        default=None,
        description="which of two classes is the finding, in the report's counts and predictive "
        "values; unset: the second",
    )
    graded: bool = Field(
        default=False,
        description="the classes are grades in order, of which a study says the kappa too",
    )

    @field_validator("group_pattern")
    @classmethod
    def _has_brackets(cls, value: str | None) -> str | None:
        try:
            groups = 1 if value is None else re.compile(value).groups
        except re.error as exc:
            raise ValueError(f"it is no regular expression: {exc}") from exc
        if groups != 1:
            raise ValueError("one pair of brackets has to be around the patient or case")
        return value


class DepartmentSpec(Part):
    """Who deploys: owns one or more tasks and gets an engine for each."""

    name: Name
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)


class Recipe(Part):
    """Everything one run needs to know."""

    name: Name
    description: str = ""
    seed: int = Field(default=0, ge=0)
    data_folder: str | None = Field(
        default=None, description="looked in before LORKD_DATA and ~/.medmnist"
    )
    images_per_task: int | None = Field(
        default=None,
        ge=1,
        description="train on at most this many images of each task, the same ones at every seed; "
        "unset: on all",
    )
    departments: tuple[DepartmentSpec, ...] = Field(min_length=1)
    preprocess: Preprocess
    teacher: TeacherSpec = TeacherSpec()
    student: StudentSpec = StudentSpec()
    experts: ExpertSpec = ExpertSpec()
    transfer: TransferSpec = TransferSpec()
    train: TrainSpec = TrainSpec()
    parity: ParitySpec = ParitySpec()
    calibration: CalibrationSpec = CalibrationSpec()
    safety: SafetySpec = SafetySpec()
    export: ExportSpec = ExportSpec()
    benchmark: BenchmarkSpec = BenchmarkSpec()
    report: ReportSpec = ReportSpec()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        departments = [d.name for d in self.departments]
        tasks = [t.name for t in self.tasks]
        for kind, names in (("department", departments), ("task", tasks)):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{kind} named twice: {', '.join(twice)}")
        return self

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Every task, in the recipe's order: the order of the experts."""
        return tuple(task for department in self.departments for task in department.tasks)

    def task(self, name: str) -> TaskSpec:
        """The task called `name`; raises `KeyError`."""
        return {task.name: task for task in self.tasks}[name]

    @property
    def sha256(self) -> str:
        """Hash of the resolved recipe: `--resume` and later stages refuse another one."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))
