"""Classifier heads, one per task, each with its own number of classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from lorkd_deploy.errors import UsageError
from lorkd_deploy.experts.model import ExpertModel
from lorkd_deploy.experts.routing import Route, plan_route


class TaskHeads(nn.Module):
    """One `Linear` per task: features `(N, F)` → a tuple with each task's logits.

    Entry `t` is `(n_t, classes[t])`: the samples of task `t`, in the batch's order, none if it is
    absent, so a loss for each task needs neither padding nor masks. An absent task's head gets no
    gradient. `task` is what `ExpertModel` takes; the errors too are its own.
    """

    def __init__(self, features: int, classes: Sequence[int]) -> None:
        super().__init__()
        if not classes or min(classes) < 1:
            raise UsageError(f"classes per task are {tuple(classes)}, wanted at least one each")
        self.tasks = nn.ModuleList(nn.Linear(features, k) for k in classes)

    def head(self, task: int) -> nn.Linear:
        """The layer of one task."""
        return cast(nn.Linear, self.tasks[task])

    def forward(self, features: Tensor, task: Tensor | int | Route) -> tuple[Tensor, ...]:
        route = plan_route(task, len(features), len(self.tasks), features.device)
        present = {t: self.head(t)(own) for t, own in route.parts(route.sort(features)).items()}
        classes = (self.head(t).out_features for t in range(len(self.tasks)))
        return tuple(
            present[t] if t in present else features.new_empty(0, k) for t, k in enumerate(classes)
        )


class Outputs(NamedTuple):
    """Features `(N, F)` in the batch's order, and each task's logits `(n_t, K_t)`."""

    features: Tensor
    logits: tuple[Tensor, ...]


class TaskNetwork(nn.Module):
    """Base of what answers for several tasks: `network(x, task)` gives `Outputs`.

    `x` is `(N, 3, H, W)`, `task` what `ExpertModel` takes; see `TaskHeads` for the logits' form.
    """

    heads: TaskHeads


class ExpertClassifier(TaskNetwork):
    """A backbone with experts and a head for each task, in one forward.

    `backbone` maps `(N, 3, H, W)` to `(N, features)`; see `TaskHeads` for the logits' form.
    """

    def __init__(self, backbone: ExpertModel, features: int, classes: Sequence[int]) -> None:
        super().__init__()
        if len(classes) != backbone.tasks:
            raise UsageError(f"{len(classes)} heads were asked for {backbone.tasks} tasks")
        self.backbone = backbone
        self.heads = TaskHeads(features, classes)

    def forward(self, x: Tensor, task: Tensor | int | Route) -> Outputs:
        route = plan_route(task, x.shape[0], self.backbone.tasks, x.device)
        features = self.backbone(x, route)
        return Outputs(features, self.heads(features, route))

    def dense(self, task: int) -> tuple[nn.Module, nn.Linear]:
        """The plain backbone with W_t, and the task's head, in eval mode; both are copies."""
        return self.backbone.dense(task), copy.deepcopy(self.heads.head(task)).eval()
