"""The student's training: of all tasks, or of new ones alone on a frozen W0."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.fitting.transfer import transfer_module
from lorkd_deploy.training.networks.network import place
from lorkd_deploy.training.networks.restore import Teacher
from lorkd_deploy.training.networks.student import Student
from lorkd_deploy.training.ranks.auto_rank import check_budget, truncate_to_budget

log = logging.getLogger(__name__)


def fit_student(
    job: Job, student: Student, teacher: Teacher | None, *, frozen: Sequence[nn.Module] = ()
) -> Fitted:
    """Train what of `student` can be trained, in place; without a teacher it learns from labels.

    The modules in `frozen` stay in evaluation mode. Under `experts.rank: auto` the experts are
    within the budget afterwards; raises `UsageError` before any training where they never could be.
    """
    setup, classifier = job.setup, student.classifier
    job.processes.first(lambda: check_budget(setup, classifier))
    for name, reason in classifier.backbone.skipped:
        log.info("no expert on layer %s: %s", name, reason)
    for name, largest in classifier.backbone.wasteful:
        log.info("layer %s can't use its rank: %d is the largest that changes it", name, largest)
    transfer, notes = None, {}
    if teacher is not None:
        features = TeacherFeatures(teacher, job)
        transfer = transfer_module(setup, features, student.projection)
        notes = {"teacher_features": features.facts}
    objective = Objective(classifier, setup, job.spec, transfer=transfer, frozen=frozen)
    asked, size = job.spec.channels_last, setup.preprocess.size
    place(classifier, job.device, channels_last=asked, size=size)
    objective.to(job.device)
    fitted = fit(job, objective, notes)
    fitted.truncated = truncate_to_budget(setup, classifier)
    return fitted
