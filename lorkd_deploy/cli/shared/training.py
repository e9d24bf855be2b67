"""What the commands that write a bundle show when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorkd_deploy.cli.shared.render import Output

if TYPE_CHECKING:
    from lorkd_deploy.training.bundling.result import TrainingResult
    from lorkd_deploy.training.ranks.shrinking import CompressedTask

COLUMNS = (
    "department",
    "task",
    "majority class",
    "teacher accuracy",
    "teacher AUC",
    "expert accuracy",
    "expert AUC",
)
RANKS = (
    "department",
    "task",
    "rank",
    "energy",
    "parameters before",
    "after",
    "kB before",
    "after",
    "validation accuracy before",
    "after",
)


def show(output: Output, result: TrainingResult) -> None:
    """Test accuracy and AUC of teacher and expert for each task, and where the bundle lies."""
    rows = []
    for task in result.tasks:
        teacher, expert = task.teacher or {}, task.expert or {}
        rows.append(
            (
                task.department,
                task.task,
                task.majority,
                teacher.get("accuracy"),
                teacher.get("auc"),
                expert.get("accuracy"),
                expert.get("auc"),
            )
        )
    output.table("On the test split", COLUMNS, rows)
    if result.truncated:
        show_ranks(output, "Experts within the budget", result.truncated)
    if result.wasteful_layers:
        layers = ", ".join(f"{name} ({largest})" for name, largest in result.wasteful_layers)
        output.text(f"a rank above the largest that changes the layer: {layers}")
    for title, keys in (
        ("the checkpoint lacks", result.missing_keys),
        ("the checkpoint's keys that were not used", result.unexpected_keys),
    ):
        if keys:
            output.text(f"{title}: {', '.join(keys)}")
    minutes, seconds = divmod(round(result.seconds), 60)
    output.text(f"{result.steps} steps in {minutes} min {seconds} s on {result.device}")
    if result.kept:
        output.text(f"kept {len(result.kept)} files of the finished bundle, each with its sha256")
    output.text(f"wrote {result.bundle}")
    output.result(result)


def show_ranks(output: Output, title: str, tasks: Sequence[CompressedTask]) -> None:
    """What became of each task's expert: ranks, energy, sizes, validation accuracy."""
    output.table(
        title,
        RANKS,
        [
            (
                task.department,
                task.task,
                f"{min(task.ranks.values())} to {max(task.ranks.values())}",
                task.energy,
                task.parameters_before,
                task.parameters,
                task.bytes_before / 1000,
                task.bytes / 1000,
                task.validation_before["accuracy"],
                task.validation["accuracy"],
            )
            for task in tasks
        ],
    )
