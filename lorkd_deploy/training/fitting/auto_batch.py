"""The largest part of a batch that fits into memory, found by halving (`--auto-batch`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from lorkd_deploy.errors import TrainingError, is_out_of_memory
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.update import Objective, Update

log = logging.getLogger(__name__)


def fitting_parts(
    model: nn.Module,
    trial: Callable[[], Update],
    batch: Batch,
    objective: Objective,
    *,
    parts: int,
    section: str,
) -> int:
    """`parts`, doubled until one whole update of `batch` fits; `model` stays as it was.

    Each try is a forward, backward and step of an optimiser of its own, `trial()`, so that its
    state is counted too. Raises `TrainingError` where not even one image at a time fits. On a CPU
    a system that promises more memory than it has ends the process instead: nothing can be found
    there.
    """
    images = len(batch.images)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    while not _fits(model, trial, batch, objective, parts):
        model.load_state_dict(before)
        if parts >= images:
            raise TrainingError(
                "not even one image at a time fits into memory",
                fix="lower preprocess.size, choose a smaller architecture, or a GPU with more",
            )
        log.info("%d images at a time don't fit into memory", -(-images // parts))
        parts = min(2 * parts, images)
    model.load_state_dict(before)
    size = -(-images // parts)
    if parts > 1:
        log.warning(
            "batches of %d images pass %d at a time (as %s.accumulate: %d asks for)",
            images, size, section, parts,
        )  # fmt: skip
    else:
        log.info("batches of %d images fit into memory", size)
    return parts


def _fits(
    model: nn.Module, trial: Callable[[], Update], batch: Batch, objective: Objective, parts: int
) -> bool:
    model.train()
    try:
        update = trial()
        update.parts = parts
        update.gradients(batch, objective)
        update.apply(0.0)
    except (MemoryError, RuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        fits = False  # what the failed try held is free once its frames are, below
    else:
        fits = True
    model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits
