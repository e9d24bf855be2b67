"""What a training looks at before it begins: whether its splits share images or patients."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from lorkd_deploy.data import SPLITS, TaskData
from lorkd_deploy.datacheck.check import check_task
from lorkd_deploy.datacheck.result import DataCheck, keep_check, read_check
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import Recipe

MOST = 20_000  # images of a task; more take minutes, and `lorkd data check` is for those
log = logging.getLogger(__name__)


def warn_of_leaks(
    recipe: Recipe, data: Sequence[TaskData], run: Path, progress: Progress | None = None
) -> DataCheck:
    """Check the tasks' splits for twins and patients in common, warn, and keep the result in `run`.

    A check that lies there already, of a resumed run or by `lorkd data check --run`, stands. Images
    that are drawn (`phantom`) are alike by chance and nobody's: they aren't looked at.
    """
    if (kept := read_check(run)) is not None:
        return kept
    sized = [
        (sum(len(getattr(opened, name)) for name in SPLITS), task, opened)
        for task, opened in zip(recipe.tasks, data, strict=True)
        if task.data.source != "phantom"
    ]
    tasks = tuple(
        check_task(task, opened, recipe.preprocess, progress, leaks_only=True)
        for count, task, opened in sized
        if count <= MOST
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    check = DataCheck(created=now, recipe=recipe.name, tasks=tasks, leaks_only=True)
    for one in check.tasks:
        for finding in one.findings:
            if finding.level == "leakage":
                log.warning("%s: %s; figures on such a split are too good", one.task, finding.says)
    if large := [task.name for count, task, _ in sized if count > MOST]:
        log.warning(
            "%s: not checked for leaks, more than %d images each; `lorkd data check` does it",
            ", ".join(large),
            MOST,
        )
    keep_check(check, run)
    return check
