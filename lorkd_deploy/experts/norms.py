"""Norm layers with weights, and for BatchNorm statistics, of their own for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.module import _has_any_global_hook

from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.routing import Router

_backward = torch.ops.aten.native_batch_norm_backward.default
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
        norms = _together([self.tasks[task] for task in route.tasks], x, route.counts)
        if norms:
            for norm in norms:
                cast(Tensor, norm.num_batches_tracked).add_(1)
            given = [*(norm.weight for norm in norms), *(norm.bias for norm in norms)]
            y: Tensor = _EachTask.apply(x, norms, route.counts, *given)
            return y
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


def _together(
    norms: Sequence[nn.Module], x: Tensor, counts: Sequence[int]
) -> Sequence[_BatchNorm] | None:
    """`norms` where `_EachTask` takes them: BatchNorms in training, as they are made, on a CPU."""
    hooked = _has_any_global_hook()  # type: ignore[no-untyped-call]
    plain = x.device.type == "cpu" and not hooked and not torch.compiler.is_compiling()
    if not plain or min(counts) * x[0, 0].numel() < 2:
        return None
    usual = [norm for norm in norms if isinstance(norm, _BatchNorm) and _is_usual(norm, x.dtype)]
    return usual if len(usual) == len(norms) else None


def _is_usual(norm: _BatchNorm, dtype: torch.dtype) -> bool:
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks,
             norm._backward_pre_hooks)  # fmt: skip
    averages = norm.training and norm.track_running_stats and norm.momentum is not None
    known = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and norm.affine
    return averages and known and norm.weight.dtype == dtype and not any(hooks)


class _EachTask(torch.autograd.Function):
    """BatchNorms in training, each on its own task's samples, written straight into one output.

    The same bits as a call of each and `cat`, without the copies of `cat` and its backward, and
    with one node in autograd's graph for all tasks. Passes over the activations are BatchNorm's
    own: two of the input forward (its sums, its scaling), two of input and gradient backward, and
    one more of the gradient, task by task, for torch has no form of it that writes into a tensor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norms: Sequence[_BatchNorm], counts: Sequence[int], *given: Tensor
    ) -> Tensor:
        y = torch.empty_like(x)
        means, scales = x.new_empty(2, len(norms), x.shape[1])
        parts = zip(*(torch.split(each, list(counts)) for each in (x, y)), norms, strict=True)
        for (part, into, norm), mean, scale in zip(parts, means, scales, strict=True):
            assert norm.momentum is not None
            torch.native_batch_norm(
                part, norm.weight, norm.bias, norm.running_mean, norm.running_var, True,
                norm.momentum, norm.eps, out=(into, mean, scale),
            )  # fmt: skip
        ctx.save_for_backward(x, means, scales, *given[: len(norms)])
        ctx.counts, ctx.eps = list(counts), [norm.eps for norm in norms]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, means, scales, *weights = ctx.saved_tensors
        needed, weight_end = ctx.needs_input_grad, 3 + len(weights)
        wanted = [needed[0], any(needed[3:weight_end]), any(needed[weight_end:])]
        dx = torch.empty_like(x if needed[0] else x[:0])
        parts = zip(*(torch.split(each, ctx.counts) for each in (dy, x)), weights, strict=True)
        own, end = [], 0
        for (given, part, weight), mean, scale, eps in zip(
            parts, means, scales, ctx.eps, strict=True
        ):
            own_dx, *both = _backward(
                given, part, weight, None, None, mean, scale, True, eps, wanted
            )
            if needed[0]:
                dx[end : (end := end + len(part))] = own_dx
            own.append(both)
        dweights, dbiases = zip(*own, strict=True)
        return dx if needed[0] else None, None, None, *dweights, *dbiases


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
