"""The loss of labels, each task's by its own head, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MULTILABEL = "multilabel"


def label_loss(
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    kinds: Sequence[str],
    smoothing: float = 0.0,
    weights: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Mean over the batch's N samples of each one's loss by its own task's head.

    `logits[t]` is `(n_t, C_t)`, `labels[t]` `(n_t,)` int64, or `(n_t, C_t)` for a multi-label
    task, whose loss is binary cross-entropy averaged over its labels. `smoothing` is the share of
    each label that goes to all classes alike, of a finding to its presence and absence.
    `weights[t]` are those of `balanced_weights`. Absent tasks (`n_t = 0`) add nothing, not even a
    zero gradient.
    """
    total = sum(len(part) for part in labels)
    parts = [
        _task_loss(precise(logit), label, kind, smoothing, weight)
        for logit, label, kind, weight in zip(
            logits, labels, kinds, weights or [None] * len(kinds), strict=True
        )
        if len(label)
    ]
    return torch.stack(parts).sum() / total


def precise(x: Tensor) -> Tensor:
    """`x` in float32 at least: a loss in half precision is none."""
    return x if x.dtype == torch.float64 else x.float()


def _task_loss(
    logits: Tensor, labels: Tensor, kind: str, smoothing: float, weight: Tensor | None
) -> Tensor:
    if kind == MULTILABEL:
        absent, present = (1.0, 1.0) if weight is None else weight
        wanted = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        each = present * wanted * functional.softplus(-logits)
        each = each + absent * (1 - wanted) * functional.softplus(logits)
        return each.mean(dim=1).sum()
    return functional.cross_entropy(
        logits, labels, weight, reduction="sum", label_smoothing=smoothing
    )


@torch.no_grad()
def batch_accuracy(
    logits: Sequence[Tensor], labels: Sequence[Tensor], kinds: Sequence[str]
) -> Tensor:
    """Fraction of right labels in a batch, for the eye; multi-label tasks count every label."""
    right, total = [], 0
    for logit, label, kind in zip(logits, labels, kinds, strict=True):
        found = (logit > 0).long() if kind == MULTILABEL else logit.argmax(dim=1)
        right.append((found == label).sum())
        total += label.numel()
    return torch.stack(right).sum() / total
