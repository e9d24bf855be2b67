"""What a check says: findings of each task, and the pairs that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorkd_deploy.datacheck import DATA_CHECK
from lorkd_deploy.errors import LorkdError, UsageError
from lorkd_deploy.schema import Part, read_part, write_part

SCHEMA = 1
Level = Literal["leakage", "caution", "note"]


class Finding(Part):
    """One thing that was found: `count` of `of` images, pairs or classes, and what it says."""

    kind: str
    level: Level
    count: int
    of: int
    says: str


class Pair(Part):
    """Two images that are the same or nearly: their split, place in it and file, and labels.

    `likeness` is the correlation of their local contrast, 1 for the same pixels.
    """

    splits: tuple[str, str]
    places: tuple[int, int]
    names: tuple[str, str]
    labels: tuple[str, str]
    likeness: float
    exact: bool
    mirrored: bool


class SplitSize(Part):
    """A split: its images and patients or cases, and the standard error in points of an accuracy of
    80 % on it, by patients where they are known."""

    name: str
    images: int
    groups: int | None
    standard_error: float


class TaskCheck(Part):
    """One task's findings; `pairs` are the worst twenty.

    Where `compared` is false its images weren't: they are too many for the start of a training.
    """

    task: str
    source: str
    splits: tuple[SplitSize, ...]
    findings: tuple[Finding, ...]
    pairs: tuple[Pair, ...] = ()
    compared: bool = True

    @property
    def leaks(self) -> bool:
        return any(finding.level == "leakage" for finding in self.findings)


class DataCheck(Part):
    """The tasks of a recipe. `leaks_only` says that nothing but twins and patients was looked for,
    as a training does."""

    schema_version: int = SCHEMA
    created: str
    recipe: str
    tasks: tuple[TaskCheck, ...]
    leaks_only: bool = False

    @property
    def leaks(self) -> tuple[str, ...]:
        """The tasks whose splits share images or patients."""
        return tuple(task.task for task in self.tasks if task.leaks)

    def without_pairs(self) -> DataCheck:
        """It, without the names of files: what a run carries."""
        tasks = tuple(task.model_copy(update={"pairs": ()}) for task in self.tasks)
        return self.model_copy(update={"tasks": tasks})


def read_check(run: Path) -> DataCheck | None:
    """What the check said of a run's data; None where none was made."""
    path = run / DATA_CHECK
    if not path.exists():
        return None
    return read_part(path, DataCheck, LorkdError, "run `lorkd data check RECIPE --run RUN` again")


def keep_check(check: DataCheck, run: Path) -> None:
    """Keep the findings in a run, for its report and cards."""
    if not run.is_dir():
        raise UsageError(f"there is no run at {run}", fix="name the folder of --out")
    write_part(run / DATA_CHECK, check.without_pairs())
