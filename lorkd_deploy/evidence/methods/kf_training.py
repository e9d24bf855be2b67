"""A recipe's student trained by knowledge factorisation: as the common network, with small ones."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lorkd_deploy import models
from lorkd_deploy.errors import UsageError
from lorkd_deploy.evidence.methods import kf, shufflenet
from lorkd_deploy.evidence.methods.kf import FactorisedNetwork, InfoMax
from lorkd_deploy.evidence.methods.stages import StagedNetwork
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.distillation.transfer import logit_divergence
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.losses import batch_accuracy
from lorkd_deploy.training.fitting.objective import Loss, Objective
from lorkd_deploy.training.networks.network import TeacherNetwork, place
from lorkd_deploy.training.networks.restore import Teacher

# The next narrower network of the same kind, by the student's architecture.
NARROWER = {
    "torchvision:shufflenet_v2_x2_0": "torchvision:shufflenet_v2_x1_0",
    "torchvision:shufflenet_v2_x1_5": "torchvision:shufflenet_v2_x0_5",
    "torchvision:shufflenet_v2_x1_0": "torchvision:shufflenet_v2_x0_5",
    "torchvision:shufflenet_v2_x0_5": f"{shufflenet.__name__}:shufflenet_v2_x0_25",
}


def train_factorised(job: Job, teacher: Teacher) -> tuple[FactorisedNetwork, Fitted]:
    """Train the job's recipe as KF does; draws and schedule are those of any student.

    Raises `UsageError` for a student to which no narrower network is known.
    """
    network = build_factorised(job.setup)
    staged = StagedTeacher(teacher, job)
    objective = FactorisationObjective(network, job, staged)
    asked, size = job.spec.channels_last, job.setup.preprocess.size
    place(network, job.device, channels_last=asked, size=size)
    objective.to(job.device)
    return network, fit(job, objective, {"teacher_features": staged.facts})


def build_factorised(setup: Setup) -> FactorisedNetwork:
    """The recipe's student as the common network, and one of `NARROWER` per task."""
    architecture, size = setup.recipe.student.architecture, setup.preprocess.size
    if architecture not in NARROWER:
        raise UsageError(
            f"no network is known that is narrower than {architecture}, as kf needs one per task",
            fix=f"leave kf out of --methods, or take a student of {', '.join(NARROWER)}",
        )
    common = models.build(architecture)
    features = models.feature_dim(common, size)
    own = [models.build(NARROWER[architecture]) for _ in setup.names]
    narrow = models.feature_dim(own[0], size)
    return FactorisedNetwork(StagedNetwork(common, size), features, own, narrow, setup.classes)


class StagedTeacher:
    """The teacher's pooled stages and logits for a batch, read from a cache of their own."""

    def __init__(self, teacher: Teacher, job: Job) -> None:
        staged = StagedNetwork(teacher.network.backbone, teacher.preprocess.size)
        self.widths = staged.widths
        width = sum(self.widths) + teacher.network.features
        network = TeacherNetwork(_Concatenated(staged), width, job.setup.classes).eval()
        asked, size = job.spec.channels_last, teacher.preprocess.size
        place(network, job.device, channels_last=asked, size=size)
        self._features = TeacherFeatures(Teacher(network, teacher.preprocess), job, kind="stages")
        self._heads = teacher.network.heads.to(job.device)
        self.facts = self._features.facts

    def __call__(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Each stage `(N, C)`, and each task's logits `(n_t, K_t)`."""
        widths = [*self.widths, self._heads.head(0).in_features]
        *stages, last = torch.split(self._features(batch), widths, dim=1)
        logits = self._heads(last, batch.route(last.device))
        return tuple(stages), cast("tuple[Tensor, ...]", logits)


class _Concatenated(nn.Module):
    def __init__(self, staged: StagedNetwork) -> None:
        super().__init__()
        self.staged = staged

    def forward(self, x: Tensor) -> Tensor:
        features, stages = self.staged(x)
        return torch.cat([*stages, features], dim=1)


class FactorisationObjective(Objective):
    """KF's loss; the labels' part is as the recipe has it for any student."""

    def __init__(self, network: FactorisedNetwork, job: Job, teacher: StagedTeacher) -> None:
        super().__init__(network, job.setup, job.spec)
        self.info_max = InfoMax(teacher.widths, network.common.widths)
        self._teacher, self._kinds = teacher, job.setup.kinds

    def forward(self, batch: Batch) -> Loss:
        x, labels = self.given(batch)
        found = cast(FactorisedNetwork, self.network).factors(x, batch.route(x.device))
        stages, logits = self._teacher(batch)
        transfer = logit_divergence(logits, found.logits, self._kinds, kf.TEMPERATURE)
        info_min = torch.stack([kf.info_min(own) for own in found.own]).mean()
        parts = {
            "labels": self.label_loss(found.logits, labels),
            "own labels": kf.TASK_WEIGHT * self.label_loss(found.own_logits, labels),
            "transfer": kf.KD_WEIGHT * transfer,
            "info max": kf.INFO_MAX_WEIGHT * self.info_max(stages, found.stages),
            "info min": kf.INFO_MIN_WEIGHT * info_min,
        }
        return Loss(parts, batch_accuracy(found.logits, labels, self._kinds))
