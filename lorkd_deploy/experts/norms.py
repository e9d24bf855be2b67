"""Norm layers with weights, and for BatchNorm statistics, of their own for each task."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.routing import Router

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def has_own_state(module: nn.Module) -> bool:
    """A norm layer that holds weights or running statistics, so that tasks can differ in it."""
    kept = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
    return isinstance(module, NORMS) and bool(kept)


class PerTaskNorm(nn.Module):
    """One norm layer per task, each seeing its own task's samples only: `(N, …)` → `(N, …)`.

    A BatchNorm in training whose task has a single value per channel (one sample of 1 × 1) uses its
    running statistics for that batch and leaves them as they are: a variance of one value says
    nothing.
    """

    def __init__(self, norm: nn.Module, name: str, tasks: int, router: Router) -> None:
        super().__init__()
        self.name = name
        self.router = router
        self.tasks = nn.ModuleList(copy_of(norm) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        route = self.router.enter(self.name, x)
        counts = self.router.everywhere
        own = route.parts(x)
        if counts and isinstance(self.tasks[0], nn.SyncBatchNorm):
            return self._with_the_others(x, own, counts, route.rows)
        parts = [_apply(self.tasks[task], part) for task, part in own.items()]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _with_the_others(
        self, x: Tensor, own: dict[int, Tensor], counts: list[int], rows: int
    ) -> Tensor:
        """Each process calls the layers of all tasks that any of them has, in the same order.

        `counts` are of samples, each with `rows` rows of `x`. Without any a `SyncBatchNorm` only
        takes part in the exchange, and has to be in the graph to do so in the backward too.
        """
        values = rows * x.numel() // max(1, x.shape[0] * x.shape[1])
        parts = {}
        for task, count in enumerate(counts):
            here = own.get(task, x[:0])
            if count * values > 1:
                parts[task] = self.tasks[task](here)
            elif task in own:
                parts[task] = _settled(self.tasks[task], here)
        others = [part for task, part in parts.items() if task not in own]
        return torch.cat([parts[task] for task in own] + others)


def _apply(norm: nn.Module, x: Tensor) -> Tensor:
    batch_norm = isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    if batch_norm and x.numel() == x.shape[1]:
        return _settled(norm, x)
    return cast(Tensor, norm(x))


def _settled(norm: nn.Module, x: Tensor) -> Tensor:
    """The layer in training, for once by its running statistics."""
    norm.eval()
    try:
        return cast(Tensor, norm(x))
    finally:
        norm.train()
