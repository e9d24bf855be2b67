"""What the student learns from the teacher, a module per `transfer.kind` of the recipe.

Each maps a batch and the student's outputs on it to a loss, the mean over its N samples. What such
a module has of its own is trained, and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorkd_deploy.experts import Outputs
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.losses import MULTILABEL, precise


def transfer_module(setup: Setup, features: TeacherFeatures, projection: nn.Module) -> nn.Module:
    """The recipe's; `projection` maps features of the teacher's width to the student's."""
    spec = setup.recipe.transfer
    if spec.kind == "features":
        return FeatureTransfer(features, projection, spec.tau)
    return LogitTransfer(features, setup.kinds, spec.tau)


class FeatureTransfer(nn.Module):
    """τ² · KL( softmax(P f_teacher / τ) ‖ softmax(f_student / τ) ) on pooled features.

    `projection` P maps the teacher's features to the student's width (2048 → 1024 in the paper).
    """

    def __init__(self, features: TeacherFeatures, projection: nn.Module, tau: float) -> None:
        super().__init__()
        self.projection = projection
        self._features = features
        self._tau = tau

    def forward(self, batch: Batch, output: Outputs) -> Tensor:
        target = self.projection(self._features(batch))
        return softened_divergence(target, output.features, self._tau)


class LogitTransfer(nn.Module):
    """The same on each task's own logits, of the teacher's head and the student's."""

    def __init__(self, features: TeacherFeatures, kinds: Sequence[str], tau: float) -> None:
        super().__init__()
        self._features = features
        self._kinds = kinds
        self._tau = tau

    def forward(self, batch: Batch, output: Outputs) -> Tensor:
        features = self._features(batch)
        target = self._features.teacher.heads(features, batch.route(features.device))
        return logit_divergence(target, output.logits, self._kinds, self._tau)


def softened_divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), mean over the samples `(N, F)`.

    The gradient reaches both arguments.
    """
    target = functional.log_softmax(precise(teacher) / tau, dim=1)
    source = functional.log_softmax(precise(student) / tau, dim=1)
    return functional.kl_div(source, target, reduction="batchmean", log_target=True) * tau**2


def logit_divergence(
    teacher: Sequence[Tensor], student: Sequence[Tensor], kinds: Sequence[str], tau: float
) -> Tensor:
    """`softened_divergence` on each task's own logits, mean over the batch's N samples.

    A multi-label task's labels are independent: there the divergence is the binary one, averaged
    over its labels.
    """
    total = sum(len(part) for part in teacher)
    parts = []
    for target, source, kind in zip(teacher, student, kinds, strict=True):
        if not len(target):
            continue
        if kind == MULTILABEL:
            t, s = (torch.stack([v, torch.zeros_like(v)], dim=-1) for v in (target, source))
            each = softened_divergence(t.flatten(0, 1), s.flatten(0, 1), tau)
        else:
            each = softened_divergence(target, source, tau)
        parts.append(each * len(target))
    return torch.stack(parts).sum() / total
