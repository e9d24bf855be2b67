"""The objective against its formula, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lorkd_deploy.training.batches.setup import balanced_weights
from lorkd_deploy.training.fitting.distillation.transfer import (
    logit_divergence,
    softened_divergence,
)
from lorkd_deploy.training.fitting.losses import batch_accuracy, label_loss

torch.manual_seed(0)


def test_label_loss_is_the_mean_over_samples_not_over_tasks() -> None:
    logits = [torch.randn(5, 3), torch.randn(1, 4)]
    labels = [torch.tensor([0, 1, 2, 0, 1]), torch.tensor([3])]
    each = [
        -torch.log_softmax(row, 0)[label]
        for rows, wanted in zip(logits, labels, strict=True)
        for row, label in zip(rows, wanted, strict=True)
    ]
    found = label_loss(logits, labels, ["multiclass", "multiclass"])
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_an_absent_task_gets_no_gradient() -> None:
    present, absent = torch.randn(2, 3, requires_grad=True), torch.randn(0, 3, requires_grad=True)
    empty = torch.empty(0, dtype=torch.int64)
    loss = label_loss([present, absent], [torch.tensor([0, 2]), empty], ["multiclass"] * 2)
    loss.backward()
    assert present.grad is not None
    assert absent.grad is None


def test_multilabel_is_binary_cross_entropy() -> None:
    logits, labels = torch.randn(4, 14), torch.randint(0, 2, (4, 14))
    p = torch.sigmoid(logits)
    each = -(labels * p.log() + (1 - labels) * (1 - p).log())
    torch.testing.assert_close(label_loss([logits], [labels], ["multilabel"]), each.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_is_torchs(smoothing: float, weighted: bool) -> None:
    logits = [torch.randn(5, 3), torch.randn(2, 4)]
    labels = [torch.tensor([0, 1, 2, 0, 1]), torch.tensor([3, 0])]
    weights = [torch.tensor([0.5, 2.0, 1.0]), torch.tensor([1.0, 3.0, 0.2, 0.7])]
    chosen = weights if weighted else [None, None]
    wanted = [
        functional.cross_entropy(x, y, w, label_smoothing=smoothing, reduction="sum")
        for x, y, w in zip(logits, labels, chosen, strict=True)
    ]
    found = label_loss(logits, labels, ["multiclass"] * 2, smoothing, chosen)
    torch.testing.assert_close(found, torch.stack(wanted).sum() / 7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_of_findings_is_that_of_absent_and_present(
    smoothing: float, weighted: bool
) -> None:
    logits, labels = torch.randn(4, 5) * 20, torch.randint(0, 2, (4, 5))
    weights = torch.stack([torch.rand(5) + 0.5, torch.rand(5) + 0.5])
    pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    wanted = torch.stack(
        [
            functional.cross_entropy(
                pairs[:, finding],
                labels[:, finding],
                weights[:, finding] if weighted else None,
                label_smoothing=smoothing,
                reduction="sum",
            )
            for finding in range(5)
        ]
    )
    chosen = [weights] if weighted else None
    found = label_loss([logits], [labels], ["multilabel"], smoothing, chosen)
    torch.testing.assert_close(found, wanted.sum() / labels.numel())


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_transfer_is_the_papers_divergence(tau: float) -> None:
    teacher, student = torch.randn(6, 8) * 5, torch.randn(6, 8) * 5
    p, q = (torch.softmax(v / tau, 1) for v in (teacher, student))
    expected = tau**2 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(softened_divergence(teacher, student, tau), expected)
    assert softened_divergence(teacher, teacher, tau).abs() < 1e-6


def test_transfer_reaches_projection_and_student() -> None:
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    softened_divergence(teacher, student, 2.0).backward()
    for tensor in (teacher, student):
        gradient: Tensor | None = tensor.grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_logit_transfer_weights_tasks_by_their_samples() -> None:
    known = [torch.randn(3, 2), torch.randn(1, 5), torch.randn(0, 4)]
    learnt = [torch.randn(3, 2), torch.randn(1, 5), torch.randn(0, 4)]
    found = logit_divergence(known, learnt, ["multiclass"] * 3, 4.0)
    expected = (
        3 * softened_divergence(known[0], learnt[0], 4.0)
        + softened_divergence(known[1], learnt[1], 4.0)
    ) / 4
    torch.testing.assert_close(found, expected)


def test_multilabel_transfer_is_the_binary_divergence() -> None:
    known, learnt, tau = torch.randn(3, 5), torch.randn(3, 5), 2.0
    p, q = torch.sigmoid(known / tau), torch.sigmoid(learnt / tau)
    each = p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
    found = logit_divergence([known], [learnt], ["multilabel"], tau)
    torch.testing.assert_close(found, tau**2 * each.mean())


def test_batch_accuracy_counts_images_and_single_findings() -> None:
    logits = [torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, -1.0, 3.0, -2.0]])]
    labels = [torch.tensor([0, 0]), torch.tensor([[1, 0, 0, 1]])]
    assert batch_accuracy(logits, labels, ["multiclass", "multilabel"]) == 3 / 6


def test_balanced_classes_weigh_the_same_and_average_to_one() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1)
    weights = balanced_weights(labels, 4, "multiclass")
    sums = [float(weights[labels[labels == c]].sum()) for c in (0, 1, 3)]
    assert sums == pytest.approx([2.5, 2.5, 2.5])
    assert weights[2] == 0, "a class without an image"
    assert float(weights[[0, 1, 3]].min()) > 0
    logits = torch.randn(10, 4)
    wanted = functional.cross_entropy(
        logits, torch.from_numpy(labels), weights, reduction="sum"
    ) / len(labels)
    found = label_loss([logits], [torch.from_numpy(labels)], ["multiclass"], 0.0, [weights])
    torch.testing.assert_close(found, wanted)


def test_balanced_findings_weigh_presence_as_absence() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 1]])
    weights = balanced_weights(labels, 2, "multilabel")
    torch.testing.assert_close(weights, torch.tensor([[4 / 6, 4 / 6], [2.0, 2.0]]))
    logits = torch.zeros(4, 2)  # each label costs ln 2 by itself
    found = label_loss([logits], [torch.from_numpy(labels)], ["multilabel"], 0.0, [weights])
    torch.testing.assert_close(found, torch.log(torch.tensor(2.0)))
