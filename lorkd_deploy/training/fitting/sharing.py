"""One step of several processes: gradients, buffers and the statistics of norms are those of all.

Each process takes its share of every batch. The gradients are summed after the backward in one flat
buffer, so an expert whose task is absent from one process gets the others' gradient, and one whose
task is absent everywhere gets none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.training.processes import Processes

ABLE = {"cuda"}  # the devices of `SyncBatchNorm`
log = logging.getLogger(__name__)


def share_state(model: nn.Module, processes: Processes) -> None:
    """Give all processes the weights and buffers of process 0."""
    if processes.count == 1:
        return
    with processes.together():
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def sum_gradients(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Sum each parameter's gradient; one that has none in any process keeps none."""
    if processes.count == 1:
        return
    processes.meet()
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for group in kinds.values():
        has = group[0].new_tensor([p.grad is not None for p in group])
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group]
        flat = processes.sum(torch.cat([has, *parts]))
        owners = flat[: len(group)].tolist()
        totals = torch.split(flat[len(group) :], [p.numel() for p in group])
        for parameter, owned, total in zip(group, owners, totals, strict=True):
            if owned and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))


@contextmanager
def merged_buffers(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Move each buffer by the mean of what moves it, in the block, in the processes that move it.

    So running statistics of batch norms are the same everywhere, and a task that was absent from
    one process does not hold back its own.
    """
    if processes.count == 1:
        yield
        return
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for buffer, old in zip(model.buffers(), before, strict=True):
        if buffer.dtype != torch.bool:
            kinds.setdefault(buffer.dtype, []).append((buffer, old))
    for kind, group in kinds.items():
        moves = [(buffer - old).flatten() for buffer, old in group]
        moved = torch.stack([move.any() for move in moves]).to(kind)
        flat = processes.sum(torch.cat([moved, *moves]))
        owners = flat[: len(group)].clamp_(min=1)
        totals = torch.split(flat[len(group) :], [old.numel() for _, old in group])
        for (buffer, old), total, count in zip(group, totals, owners, strict=True):
            mean = total / count if kind.is_floating_point else total // count
            buffer.copy_(old + mean.view_as(old))


@contextmanager
def shared_statistics(model: nn.Module, processes: Processes) -> Iterator[None]:
    """For the length of a block, BatchNorms see the whole batch on GPUs: `SyncBatchNorm`.

    It refuses CPU tensors: there each process uses its own share's statistics. The log says
    which. Afterwards the model has its own layers again, with what they have learnt: weights and
    buffers are the same tensors. Norms in evaluation mode have no need of it and stay.
    """
    swapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm) and child.training
    ]
    if processes.count == 1 or not swapped:
        yield
        return
    if processes.device.type not in ABLE:
        log.info("%d BatchNorm layers use the statistics of each process's own share of a batch: "
                 "SyncBatchNorm needs GPUs", len(swapped))  # fmt: skip
        yield
        return
    new = [_synchronised(old) for _, _, old in swapped]
    own = [type(old).__name__ for (_, _, old), made in zip(swapped, new, strict=True)
           if made is old]  # fmt: skip
    log.info("SyncBatchNorm on %d layers: statistics of the whole batch", len(new) - len(own))
    if own:
        log.info("each process's own statistics on %d layers of a class of their own: %s",
                 len(own), ", ".join(sorted({*own})))  # fmt: skip
    students = [m for m in model.modules() if isinstance(m, ExpertModel)]
    for (parent, name, _), made in zip(swapped, new, strict=True):
        setattr(parent, name, made)
    for student in students:
        student.count_with(processes.total_counts)
    try:
        yield
    finally:
        for student in students:
            student.count_with(None)
        for (parent, name, old), made in zip(swapped, new, strict=True):
            setattr(parent, name, old.train(made.training))


def _synchronised(norm: nn.Module) -> nn.Module:
    """The same layer as a `SyncBatchNorm`, sharing its tensors; itself if its class is unknown."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if type(norm).__module__.startswith("timm."):
        from timm.layers import norm_act

        convert = norm_act.convert_sync_batchnorm  # torch's own would lose the activation
    elif type(norm) not in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
        return norm
    made: nn.Module = convert(norm)
    return made
