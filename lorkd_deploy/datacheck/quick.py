"""What a training looks at before it begins: whether its splits share images or patients."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from lorkd_deploy.data import SPLITS, TaskData
from lorkd_deploy.datacheck.check import check_patients, check_task
from lorkd_deploy.datacheck.kept import Kept
from lorkd_deploy.datacheck.result import DataCheck, TaskCheck, keep_check, read_check
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import Recipe, TaskSpec

MOST = 100_000  # images of a task; more take too long before a training, unless a check is kept
log = logging.getLogger(__name__)


def warn_of_leaks(
    recipe: Recipe, data: Sequence[TaskData], run: Path, progress: Progress | None = None
) -> DataCheck:
    """Check the tasks' splits for twins and patients in common, warn, and keep the result in `run`.

    A check that lies there already, of a resumed run or by `lorkd data check --run`, stands. Images
    that are drawn (`phantom`) are alike by chance and nobody's: they aren't looked at. Of a task
    with more than `MOST` images only patients are, unless `lorkd data check` has kept its findings.
    """
    check = read_check(run)
    if check is None:
        check = _check(recipe, data, progress)
        keep_check(check, run)
    for one in check.tasks:
        for finding in one.findings:
            if finding.level == "leakage":
                log.warning("%s: %s; figures on such a split are too good", one.task, finding.says)
    if unseen := [one.task for one in check.tasks if not one.compared]:
        log.warning(
            "%s: images not compared across splits, more than %d each; `lorkd data check` does it, "
            "and what it finds is kept",
            ", ".join(unseen),
            MOST,
        )
    return check


def _check(recipe: Recipe, data: Sequence[TaskData], progress: Progress | None) -> DataCheck:
    tasks = tuple(
        _checked(task, opened, recipe.preprocess, progress)
        for task, opened in zip(recipe.tasks, data, strict=True)
        if task.data.source != "phantom"
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DataCheck(created=now, recipe=recipe.name, tasks=tasks, leaks_only=True)


def _checked(
    task: TaskSpec, data: TaskData, preprocess: Preprocess, progress: Progress | None
) -> TaskCheck:
    kept = Kept(task, data, preprocess, progress)
    if (found := kept.read()) is not None:
        return found
    if sum(len(getattr(data, name)) for name in SPLITS) > MOST:
        return check_patients(task, data)
    return kept.made(partial(check_task, task, data, preprocess, progress, leaks_only=True))
