"""What the student learns from the teacher, a part per `transfer.kind` of the recipe.

Each maps the teacher's features `(N, F)` of a batch and the student's outputs on it to a loss, the
mean over its N samples. What it has of its own is trained, and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorkd_deploy.experts import Outputs
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.distillation.components import Components
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.losses import MULTILABEL, precise
from lorkd_deploy.training.networks.restore import Teacher


def transfer_of(job: Job, teacher: Teacher, width: int) -> tuple[Transfer, dict[str, Any]]:
    """The recipe's transfer to a student of `width` features, and facts for the history.

    A teacher without heads for the tasks has no logits to learn from: `both` is `features` then.
    """
    spec = job.setup.recipe.transfer
    features = TeacherFeatures(teacher, job)
    facts: dict[str, Any] = {"teacher_features": features.facts}
    parts: list[nn.Module] = []
    if spec.kind == "logits" or (spec.kind == "both" and teacher.has_heads):
        parts.append(LogitTransfer(features.teacher.heads, job.setup.kinds, spec.tau))
    if spec.kind in {"features", "both"}:
        components = Components(features, job)
        facts["teacher_components"] = components.facts
        parts.append(FeatureTransfer(components, width))
    if spec.kind == "paper":
        parts.append(PaperTransfer(features.teacher.features, width, spec.tau))
    return Transfer(features, parts), facts


class Transfer(nn.Module):
    """The sum of `parts`, which share the teacher's features of a batch."""

    def __init__(self, features: TeacherFeatures, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._features = features

    def forward(self, batch: Batch, output: Outputs) -> Tensor:
        known = self._features(batch)
        return torch.stack([part(known, batch, output) for part in self.parts]).sum()


class LogitTransfer(nn.Module):
    """τ² · KL( softmax(teacher's logits / τ) ‖ softmax(student's logits / τ) ), each task's own.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. `heads` are the
    teacher's; `kinds` say which tasks are multi-label, see `logit_divergence`.
    """

    def __init__(self, heads: nn.Module, kinds: Sequence[str], tau: float) -> None:
        super().__init__()
        self._heads = (heads,)  # a tuple registers nothing: they aren't trained
        self._kinds = kinds
        self._tau = tau

    def forward(self, known: Tensor, batch: Batch, output: Outputs) -> Tensor:
        target = self._heads[0](known, batch.route(known.device))
        return logit_divergence(target, output.logits, self._kinds, self._tau)


class FeatureTransfer(nn.Module):
    """Mean over the K components of ( P f_student + b - z )², z being the teacher's `Components`.

    The regression of features by FitNets (Romero et al., ICLR 2015), on a target that is fixed and
    standardised; P and b are trained. A P that knows nothing gives 1.
    """

    def __init__(self, components: Components, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, components.count)
        self._components = components

    def forward(self, known: Tensor, batch: Batch, output: Outputs) -> Tensor:
        found = precise(self.projection(output.features))
        return functional.mse_loss(found, self._components(known))


class PaperTransfer(nn.Module):
    """τ² · KL( softmax(P f_teacher / τ) ‖ softmax(f_student / τ) ) on pooled features, as in LoRKD.

    P maps the teacher's features to the student's width (2048 → 1024 in the paper) and is trained,
    so the target can shrink until there is nothing left to learn.
    """

    def __init__(self, features: int, width: int, tau: float) -> None:
        super().__init__()
        self.projection = nn.Linear(features, width)
        self._tau = tau

    def forward(self, known: Tensor, batch: Batch, output: Outputs) -> Tensor:
        return softened_divergence(self.projection(known), output.features, self._tau)


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
