"""What `lorkd teacher` and `lorkd decompose` give back."""

from __future__ import annotations

from pydantic import Field

from lorkd_deploy.schema import Part
from lorkd_deploy.training.ranks.shrinking import CompressedTask


class TaskResult(Part):
    """Scores on the task's test split, each `{"accuracy": …, "auc": …}`; None: not trained here."""

    task: str
    department: str
    majority: float
    teacher: dict[str, float] | None = None
    expert: dict[str, float] | None = None


class TrainingResult(Part):
    """A finished training: where it lies, what it scores, what it took.

    `wasteful_layers` have a rank above the largest, which is named, that can change them.
    `truncated` says, for `experts.rank: auto`, what each task's expert became within the budget.
    `kept` is set where departments were added: the files of the finished bundle and their sha256,
    which they have in the new one too.
    """

    run: str
    bundle: str
    tasks: tuple[TaskResult, ...]
    steps: int
    best_step: int
    seconds: float
    parameters: dict[str, int]
    device: str
    truncated: tuple[CompressedTask, ...] = ()
    skipped_layers: tuple[tuple[str, str], ...] = ()
    wasteful_layers: tuple[tuple[str, int], ...] = ()
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    kept: dict[str, str] = Field(default_factory=dict)
