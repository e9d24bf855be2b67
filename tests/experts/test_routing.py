"""Mixed batches: ids and counts make routes, wrong ones are refused, and heads take slices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorkd_deploy.errors import UsageError
from lorkd_deploy.experts import ExpertClassifier, TaskHeads, add_experts, route_of_counts
from tests.experts.small_student import IDS, X, student


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.fc(x)
        return {"rows": y, "pair": (y * 2, [y.sum()]), "note": "kept"}


def test_nested_outputs_come_back_in_the_batch_order() -> None:
    model = add_experts(Outputs(), 3, rank=2)
    nn.init.normal_(model.module.fc.B)
    ids, x = torch.tensor([2, 0, 2]), torch.randn(3, 4)
    out = model(x, task=ids)
    wanted = torch.cat([model(x[n : n + 1], task=int(t))["rows"] for n, t in enumerate(ids)])
    torch.testing.assert_close(out["rows"], wanted)
    torch.testing.assert_close(out["pair"][0], wanted * 2)
    torch.testing.assert_close(out["pair"][1][0], wanted.sum())
    assert out["note"] == "kept"


@pytest.mark.parametrize("last", [True, False])
def test_images_keep_their_memory_format_when_they_are_sorted_and_put_back(last: bool) -> None:
    seen = []

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            seen.append(x)
            return x + self.fc(x.mean((2, 3)))[..., None, None] * 0

    kind = torch.channels_last if last else torch.contiguous_format
    ids, x = torch.tensor([1, 0, 1, 0]), torch.randn(4, 5, 6, 7).to(memory_format=kind)
    out = add_experts(Same(), 2, rank=1)(x, task=ids)
    for images in (seen[-1], out):
        assert images.is_contiguous(memory_format=kind)
    torch.testing.assert_close(seen[-1], x[[1, 3, 0, 2]])
    torch.testing.assert_close(out, x)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 0, 0]), "no task 3"),
        (torch.tensor([0, -1, 2, 0, 0, 0, 0]), "no task -1"),
        (torch.zeros(7, dtype=torch.int32), "torch.int32"),
        (torch.zeros(7), "torch.float32"),
        (torch.zeros(6, dtype=torch.int64), r"\(6,\)"),
        (torch.zeros(7, 1, dtype=torch.int64), r"\(7, 1\)"),
        (3, "no task 3"),
        (-1, "no task -1"),
        (True, "bool"),
        ("0", "str"),
    ],
)
def test_wrong_ids_are_clear_errors(task, message: str) -> None:
    model = student()
    with pytest.raises(UsageError, match=message):
        model(X, task=task)
    model(X, task=0)  # and the model is as usable as before


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        student()(X[:0], task=torch.zeros(0, dtype=torch.int64))


def test_heads_have_their_own_class_counts_and_absent_ones_no_gradient() -> None:
    model = ExpertClassifier(student().eval(), 5, [2, 4, 3])
    ids = torch.tensor([2, 0, 2, 2, 0, 0, 2])
    features, logits = model(X, task=ids)
    assert features.shape == (7, 5)
    assert [tuple(rows.shape) for rows in logits] == [(3, 2), (0, 4), (4, 3)]
    torch.testing.assert_close(logits[2], model.heads.head(2)(features[ids == 2]))
    sum(rows.sum() for rows in logits).backward()
    assert model.heads.head(1).weight.grad is None
    assert model.heads.head(0).weight.grad.any()
    backbone, head = model.dense(2)
    torch.testing.assert_close(head(backbone(X[ids == 2])), logits[2], rtol=1e-5, atol=1e-5)
    assert [len(rows) for rows in model(X, task=1).logits] == [0, 7, 0]
    with pytest.raises(UsageError, match="2 heads were asked for 3 tasks"):
        ExpertClassifier(student(), 5, [2, 4])


def test_heads_serve_a_plain_teacher_too() -> None:
    heads = TaskHeads(4, [2, 3])
    logits = heads(torch.randn(3, 4), torch.tensor([1, 0, 1]))
    assert [tuple(rows.shape) for rows in logits] == [(1, 2), (2, 3)]


def test_a_route_planned_from_counts_gives_what_its_ids_give() -> None:
    model = ExpertClassifier(student().eval(), 5, [2, 4, 3])
    for counts in ([4, 0, 3], [1, 2, 4], [4, 2, 1], [0, 7, 0]):
        ids = torch.repeat_interleave(torch.tensor(counts))
        wanted, got = model(X, task=ids), model(X, task=route_of_counts(counts, X.device))
        assert torch.equal(got.features, wanted.features)
        for task, (ours, theirs) in enumerate(zip(got.logits, wanted.logits, strict=True)):
            assert torch.equal(ours, theirs) and len(ours) == counts[task]


def test_a_route_of_another_batch_or_model_is_an_error() -> None:
    model = student()
    for counts in ([3, 3, 2], [4, 3], [3, 2, 1, 1]):
        with pytest.raises(UsageError, match="the route is of"):
            model(X, task=route_of_counts(counts, X.device))
    with pytest.raises(UsageError, match="empty"):
        route_of_counts([0, 0], X.device)


class Waits(TorchDispatchMode):
    """The operations that on a GPU would wait for it: each tells the CPU a tensor's values."""

    names = ("_local_scalar_dense", "nonzero", "bincount", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        masks = [i for i in args[1] if i is not None] if name == "index" else []
        if name in self.names or any(i.dtype == torch.bool for i in masks):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_route_planned_from_counts_waits_for_no_gpu() -> None:
    model = ExpertClassifier(student("per_task"), 5, [2, 4, 3])
    route = route_of_counts([4, 0, 3], X.device)
    model(X, task=route)  # the first forward probes the model, which reads what it gives
    with Waits() as waits:
        sum(rows.sum() for rows in model(X, task=route).logits).backward()
    assert waits.seen == []
    with Waits() as waits:
        model(X, task=IDS)
    assert "bincount" in waits.seen
