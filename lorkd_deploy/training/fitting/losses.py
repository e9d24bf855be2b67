"""The objective of LoRKD: labels by the task's own head, knowledge from the teacher.

L = 1/N Σ_t Σ_{i in t} [ CE(y_i, p_i) + β · τ² · KL( softmax(f_teacher/τ) ‖ softmax(f_student/τ) ) ]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
        _task_loss(_precise(logit), label, kind, smoothing, weight)
        for logit, label, kind, weight in zip(
            logits, labels, kinds, weights or [None] * len(kinds), strict=True
        )
        if len(label)
    ]
    return torch.stack(parts).sum() / total


def _precise(x: Tensor) -> Tensor:
    """At least float32: a loss in half precision is none."""
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


def class_counts(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """How many images show each class of labels `(n,)`, or finding of `(n, K)`: `(K,)`."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    return np.bincount(labels, minlength=classes)


def balanced_weights(labels: npt.NDArray[np.int64], classes: int, kind: str) -> Tensor:
    """Weights by which each class of a task counts the same: n / (K · n_class), float32.

    `(K,)` for the labels `(n,)` of a task with K classes; `(2, L)`, absent and present, for the
    labels `(n, L)` of a multi-label task, whose findings are a pair of classes each. They average
    to 1 over the images. A class without an image gets 0.
    """
    counts = class_counts(labels, classes)
    if kind == MULTILABEL:
        counts = np.stack([len(labels) - counts, counts])
    weights = np.where(counts > 0, len(labels) / (len(counts) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


@torch.no_grad()
def batch_accuracy(
    logits: Sequence[Tensor], labels: Sequence[Tensor], kinds: Sequence[str]
) -> float:
    """Fraction of right labels in a batch, for the eye; multi-label tasks count every label."""
    right, total = 0, 0
    for logit, label, kind in zip(logits, labels, kinds, strict=True):
        found = (logit > 0).long() if kind == MULTILABEL else logit.argmax(dim=1)
        right += int((found == label).sum())
        total += label.numel()
    return right / total


def transfer_loss(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), mean over the samples `(N, F)`.

    The same formula serves pooled features (the teacher's after a trained projection to the
    student's width) and logits. The gradient reaches both arguments.
    """
    target = functional.log_softmax(_precise(teacher) / tau, dim=1)
    source = functional.log_softmax(_precise(student) / tau, dim=1)
    return functional.kl_div(source, target, reduction="batchmean", log_target=True) * tau**2


def logit_transfer(
    teacher: Sequence[Tensor], student: Sequence[Tensor], kinds: Sequence[str], tau: float
) -> Tensor:
    """`transfer_loss` on each task's own logits, mean over the batch's N samples.

    A multi-label task's labels are independent: there the divergence is the binary one, averaged
    over its labels.
    """
    total = sum(len(part) for part in teacher)
    parts = []
    for known, learnt, kind in zip(teacher, student, kinds, strict=True):
        if not len(known):
            continue
        if kind == MULTILABEL:
            t, s = (torch.stack([v, torch.zeros_like(v)], dim=-1) for v in (known, learnt))
            each = transfer_loss(t.flatten(0, 1), s.flatten(0, 1), tau)
        else:
            each = transfer_loss(known, learnt, tau)
        parts.append(each * len(known))
    return torch.stack(parts).sum() / total
