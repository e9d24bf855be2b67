"""The student's training: of all tasks, or of new ones alone on a frozen W0."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.training.fitting.distillation.transfer import Transfer, transfer_of
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.networks.network import place
from lorkd_deploy.training.networks.restore import Teacher
from lorkd_deploy.training.ranks.auto_rank import check_budget, truncate_to_budget

log = logging.getLogger(__name__)


def fit_student(
    job: Job,
    student: ExpertClassifier,
    teacher: Teacher | None,
    *,
    frozen: Sequence[nn.Module] = (),
) -> Fitted:
    """Train what of `student` can be trained, in place; without a teacher it learns from labels.

    The modules in `frozen` stay in evaluation mode. Under `experts.rank: auto` the experts are
    within the budget afterwards; raises `UsageError` before any training where they never could be.
    """
    setup = job.setup
    job.processes.first(lambda: check_budget(setup, student))
    if skipped := student.backbone.skipped:
        log.info("no expert on %d layers, which all tasks share: -v names them", len(skipped))
    for name, reason in skipped:
        log.debug("no expert on layer %s: %s", name, reason)
    for name, largest in student.backbone.wasteful:
        log.info("layer %s can't use its rank: %d is the largest that changes it", name, largest)
    transfer: Transfer | None = None
    notes: dict[str, Any] = {}
    if teacher is not None:
        transfer, notes = transfer_of(job, teacher, student.heads.head(0).in_features)
    objective = Objective(student, setup, job.spec, transfer=transfer, frozen=frozen)
    asked, size = job.spec.channels_last, setup.preprocess.size
    place(student, job.device, channels_last=asked, size=size)
    objective.to(job.device)
    fitted = fit(job, objective, notes)
    fitted.truncated = truncate_to_budget(setup, student)
    return fitted
