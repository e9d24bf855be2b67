"""Whose samples a BatchNorm's statistics are over when several processes share a batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.training.fitting.processes import Processes

ABLE = {"cuda"}  # the devices of `SyncBatchNorm`
log = logging.getLogger(__name__)


@contextmanager
def shared_statistics(model: nn.Module, processes: Processes) -> Iterator[None]:
    """For the length of a block, BatchNorms see the whole batch on GPUs: `SyncBatchNorm`.

    It refuses CPU tensors: there each process uses its own share's statistics. The log says
    which. Afterwards the model has its own layers again, with what they have learnt: weights and
    buffers are the same tensors.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    if processes.count == 1 or not norms:
        yield
        return
    if processes.device.type not in ABLE:
        log.info("%d BatchNorm layers use the statistics of each process's own share of a batch: "
                 "SyncBatchNorm needs GPUs", len(norms))  # fmt: skip
        yield
        return
    swapped = [
        (parent, name, child, _synchronised(child))
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    alone = [type(old).__name__ for _, _, old, new in swapped if new is old]
    log.info("SyncBatchNorm on %d layers: statistics of the whole batch", len(swapped) - len(alone))
    if alone:
        log.info("each process's own statistics on %d layers of a class of their own: %s",
                 len(alone), ", ".join(sorted({*alone})))  # fmt: skip
    students = [m for m in model.modules() if isinstance(m, ExpertModel)]
    for parent, name, _, new in swapped:
        setattr(parent, name, new)
    for student in students:
        student.count_with(processes.total_counts)
    try:
        yield
    finally:
        for student in students:
            student.count_with(None)
        for parent, name, old, new in swapped:
            setattr(parent, name, old.train(new.training))


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
