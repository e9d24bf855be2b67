"""Scores of a torch network on a split; the last partial batch is always in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lorkd_deploy.arrays import F32
from lorkd_deploy.experts import TaskNetwork
from lorkd_deploy.metrics.score import Kind, score
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.networks.network import network_input
from lorkd_deploy.training.processes import ALONE, Processes

BATCH = 256  # images in a forward


@torch.no_grad()
def task_logits(
    model: TaskNetwork,
    images: Images,
    task: int,
    preprocess: Preprocess,
    *,
    processes: Processes = ALONE,
) -> F32:
    """Logits `(N, C_t)` of one task over a whole split, in evaluation mode and fp32.

    Each of the `processes` computes some of the batches, and all get all.
    """
    was_training = model.training
    model.eval()
    logits = np.zeros((len(images), model.heads.head(task).out_features), np.float32)
    for number, start in enumerate(range(0, len(images), BATCH), start=task):
        if number % processes.count == processes.index:
            chosen = np.arange(start, min(start + BATCH, len(images)))
            output = model(network_input(images[chosen], preprocess, model), task)
            logits[chosen] = output.logits[task].float().cpu().numpy()
    model.train(was_training)
    return processes.total_array(logits)


def scores(
    model: TaskNetwork,
    splits: Sequence[Images],
    kinds: Sequence[Kind],
    preprocess: Preprocess,
    processes: Processes = ALONE,
) -> list[dict[str, float]]:
    """`metrics.score` of each task on its split."""
    return [
        score(
            images.labels, task_logits(model, images, task, preprocess, processes=processes), kind
        )
        for task, (images, kind) in enumerate(zip(splits, kinds, strict=True))
    ]


def summary(results: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, Any]:
    """One number to watch, the mean AUC over tasks, and each task's own."""
    each = {f"auc/{name}": r["auc"] for name, r in zip(names, results, strict=True)}
    return {"score": float(np.mean([r["auc"] for r in results])), **each}
