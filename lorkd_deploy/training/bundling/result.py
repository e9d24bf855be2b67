"""What `lorkd teacher` and `lorkd decompose` give back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from lorkd_deploy.metrics.score import majority
from lorkd_deploy.schema import Part
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.networks.stored import Scores
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
    seconds: float
    parameters: dict[str, int]
    device: str
    truncated: tuple[CompressedTask, ...] = ()
    skipped_layers: tuple[tuple[str, str], ...] = ()
    wasteful_layers: tuple[tuple[str, int], ...] = ()
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    kept: dict[str, str] = Field(default_factory=dict)


def training_result(
    folder: Path,
    setup: Setup,
    fitted: Fitted,
    tested: Mapping[str, Scores],
    parameters: dict[str, int],
) -> TrainingResult:
    """What the training gives back whose network is now in `folder`; writes its history.

    `tested` are the test scores of `teacher` and `expert`, of whichever there is.
    """
    device, run = setup.processes.device, folder.parent
    write_history(run / "history" / f"{folder.name}.json", fitted, device, finished=True)
    tasks = tuple(
        TaskResult(
            task=name,
            department=setup.departments[name],
            majority=majority(setup.test[index].labels),
            **{role: scores[index] for role, scores in tested.items()},
        )
        for index, name in enumerate(setup.names)
    )
    return TrainingResult(
        run=str(run),
        bundle=str(folder),
        tasks=tasks,
        steps=fitted.steps,
        seconds=round(fitted.seconds, 1),
        parameters=parameters,
        device=device.type,
        truncated=fitted.truncated,
    )
