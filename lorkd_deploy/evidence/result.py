"""What came of a study, as `STUDY/result.json` has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.analysis.comparison import Comparison
from lorkd_deploy.evidence.analysis.directions import Directions
from lorkd_deploy.evidence.costs import Cost
from lorkd_deploy.schema import Part, read_part

RESULT = "result.json"


class StudyResult(Part):
    """Figures and differences; `seeds` are those that every one of `variants` finished.

    Differences are `first` minus another. `directions` is empty where no task has classes; `failed`
    says by training's folder why it failed; `seconds` are those of all trainings together. `check`
    is what the splits share, None in a result from before it was looked for.
    """

    schema_version: int = 1
    recipe: dict[str, Any]
    recipe_sha256: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    first: str
    comparison: Comparison
    directions: dict[str, Directions]
    costs: dict[str, Cost]
    failed: dict[str, str]
    seconds: float
    software: dict[str, str]
    check: DataCheck | None = None
    created: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the recipe's order."""
        departments = self.recipe["departments"]
        return tuple(task["name"] for own in departments for task in own["tasks"])

    def tasks_of(self, metric: str) -> tuple[str, ...]:
        """The tasks that have it: of kappa those whose classes are grades."""
        having = {figure.task for figure in self.comparison.figures if figure.metric == metric}
        return tuple(task for task in self.tasks if task in having)


def read_result(folder: Path) -> StudyResult:
    """Raises `BundleError` where there is none, or it is damaged."""
    return read_part(folder / RESULT, StudyResult, BundleError, "run `lorkd study` again")
