"""Knowledge factorisation (Yang et al., ECCV 2022): a common network, and a small one per task.

The equations and weights are those of the released code for CIFAR. Its multi-task class was never
released: here each task has a small network, of which a deployed task needs its own one and the
common one, and the loss is the mean over the batch's samples, each by its own task.

    L = CE(head(z), y) + λ · CE(head_t(z_t), y)
      + 0.1 · T² · KL(softmax(teacher / T) ‖ softmax(head(z) / T))
      + mean_l InfoMax_l + 0.001 · InfoMin,        z = z_c + z_t
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorkd_deploy.evidence.methods.stages import StagedNetwork
from lorkd_deploy.experts import Outputs, TaskHeads, TaskNetwork
from lorkd_deploy.experts.routing import Route, plan_route

TASK_WEIGHT = 1.0  # λ
TEMPERATURE = 10.0
KD_WEIGHT = 0.1
INFO_MAX_WEIGHT = 1.0
INFO_MIN_WEIGHT = 1e-3
_LEAST_VARIANCE = 1e-6  # of a feature that is the same for all samples of a batch


class Factors(NamedTuple):
    """A forward of `FactorisedNetwork` with its parts; samples are in the batch's order.

    `features` z are `(N, F)`, `logits` a tensor `(n_t, K_t)` per task, `stages` the common
    network's `(N, C)`; `own` are z_t `(n_t, F)` of the tasks present, with `own_logits` per task.
    """

    features: Tensor
    logits: tuple[Tensor, ...]
    stages: tuple[Tensor, ...]
    own: tuple[Tensor, ...]
    own_logits: tuple[Tensor, ...]


class FactorisedNetwork(TaskNetwork):
    """`common` `(N, 3, S, S)` → `(N, F)`, and per task a network of `own` to fewer features.

    A bias-free layer takes z_t from `own_features` to F. Outputs are those of z = z_c + z_t.
    """

    def __init__(
        self,
        common: StagedNetwork,
        features: int,
        own: Sequence[nn.Module],
        own_features: int,
        classes: Sequence[int],
    ) -> None:
        super().__init__()
        self.common = common
        self.own = nn.ModuleList(
            nn.Sequential(network, nn.Linear(own_features, features, bias=False)) for network in own
        )
        self.heads = TaskHeads(features, classes)
        self.own_heads = TaskHeads(features, classes)

    def forward(self, x: Tensor, task: Tensor | int | Route) -> Outputs:
        features, logits, *_ = self.factors(x, task)
        return Outputs(features, logits)

    def factors(self, x: Tensor, task: Tensor | int | Route) -> Factors:
        """The same with what the loss is of."""
        route = plan_route(task, len(x), len(self.own), x.device)
        x = route.sort(x)
        shared, stages = self.common(x)
        own = tuple(self.own[t](x[rows]) for t, rows in route.segments())
        z_t = torch.cat(own)
        features, z_t, stages = route.restore((shared + z_t, z_t, stages))
        return Factors(
            features, self.heads(features, route), stages, own, self.own_heads(z_t, route)
        )

    def dense(self, task: int) -> nn.Module:
        """What one task needs at inference: `(N, 3, S, S)` → logits `(N, K_t)`; shares weights."""
        return _OneTask(self.common.module, self.own[task], self.heads.head(task))


class _OneTask(nn.Module):
    def __init__(self, common: nn.Module, own: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.common, self.own, self.head = common, own, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.common(x) + self.own(x))
        return logits


class InfoMax(nn.Module):
    """What the common network's stages share with the teacher's: mean over stages, to be minimised.

    Teacher and student are paired from their last stage backward. Each pair has a map of the
    teacher's width to the student's, which is trained and thrown away.
    """

    def __init__(self, teacher: Sequence[int], student: Sequence[int]) -> None:
        super().__init__()
        self._pairs = min(len(teacher), len(student))
        widths = zip(teacher[-self._pairs :], student[-self._pairs :], strict=True)
        self.maps = nn.ModuleList(_map(given, wanted) for given, wanted in widths)

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        losses = [
            info_max(mapped(known), learnt)
            for mapped, known, learnt in zip(
                self.maps, teacher[-self._pairs :], student[-self._pairs :], strict=True
            )
        ]
        return torch.stack(losses).mean()


def _map(given: int, wanted: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(given, wanted), nn.BatchNorm1d(wanted), nn.ReLU(), nn.Linear(wanted, wanted)
    )


def info_max(teacher: Tensor, student: Tensor) -> Tensor:
    """−( mean(s ⊙ I) − log mean exp(s ⊙ (1 − I)) ) of the cosines s `(N, N)` of two `(N, C)`.

    Both means are over all N² entries, as released.
    """
    cosine = functional.normalize(teacher, dim=1) @ functional.normalize(student, dim=1).T
    same = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    joint = torch.where(same, cosine, 0.0).mean()
    apart = torch.where(same, 0.0, cosine).exp().mean().log()
    return apart - joint


def info_min(own: Tensor) -> Tensor:
    """−½ · mean(1 + log σ² − μ² − σ²) of z_t `(n, F)`, over the batch; 0 for a single sample."""
    if len(own) < 2:
        return own.sum() * 0
    variance, mean = torch.var_mean(own, dim=0, correction=0)
    variance = variance.clamp_min(_LEAST_VARIANCE)
    return -0.5 * (1 + variance.log() - mean**2 - variance).mean()
