"""An expert without samples in a step doesn't move: no gradient, decay, momentum or statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lorkd_deploy.experts import add_experts, hold_absent

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}


def _student():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(54, 4))
    model = add_experts(net, 3, rank=2, norm="per_task")
    for module in model.modules():
        if hasattr(module, "ranks"):
            nn.init.normal_(module.B, std=0.1)
    return model


def _absent_from(tasks):
    """What a sampler knows: the tasks that a batch of `tasks` lacks."""
    return [task for task in range(3) if task not in tasks]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_who_is_absent_may_be_told_instead_of_found(name: str) -> None:
    batches = [[0, 1, 2, 0], [0, 2, 0], [1, 1], [0, 1, 2]]
    models = [_student(), _student()]
    for model, told in zip(models, (False, True), strict=True):
        optimiser = OPTIMISERS[name](model.parameters())
        now: list[int] = []
        hold_absent(optimiser, (lambda now=now: now) if told else None)
        torch.manual_seed(1)
        for tasks in batches:
            now[:] = _absent_from(tasks)
            _step(model, optimiser, tasks)
    found, told_of = (model.state_dict() for model in models)
    torch.testing.assert_close(told_of, found, rtol=0, atol=0)


def _step(model, optimiser, tasks) -> None:
    optimiser.zero_grad()
    ids = torch.tensor(tasks)
    model(torch.randn(len(ids), 3, 5, 5), task=ids).square().sum().backward()
    optimiser.step()


def _expert(model, task):
    return {k: v.clone() for k, v in model.expert_state(task).items()}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_absent_experts_stay_where_they_are(name: str) -> None:
    model = _student()
    optimiser = OPTIMISERS[name](model.parameters())
    hold_absent(optimiser)
    _step(model, optimiser, [0, 1, 2, 0])  # every expert has momentum now
    before = [_expert(model, task) for task in range(3)]
    for _ in range(3):
        _step(model, optimiser, [0, 2, 0])
    for key, value in model.expert_state(1).items():
        assert torch.equal(value, before[1][key]), key
    for task in (0, 2):
        assert all(not torch.equal(v, before[task][k]) for k, v in _expert(model, task).items())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_nor_does_their_part_of_the_state(name: str) -> None:
    model = _student()
    optimiser = OPTIMISERS[name](model.parameters())
    hold_absent(optimiser)
    _step(model, optimiser, [0, 1, 2, 0])
    stacks = [p for n, p in model.named_parameters() if n.endswith((".A", ".B"))]

    def of_the_absent() -> list[torch.Tensor]:
        values = (v for p in stacks for v in optimiser.state[p].values())
        return [v[1].clone() for v in values if isinstance(v, torch.Tensor) and v.dim()]

    before = of_the_absent()
    _step(model, optimiser, [0, 2, 0])
    assert before and all(map(torch.equal, before, of_the_absent()))


def test_a_module_that_was_saved_whole_is_held_too(tmp_path: Path) -> None:
    torch.save(_student(), tmp_path / "student.pt")
    model = torch.load(tmp_path / "student.pt", weights_only=False)
    optimiser = OPTIMISERS["sgd"](model.parameters())
    hold_absent(optimiser)
    _step(model, optimiser, [0, 1, 2])
    before = _expert(model, 1)
    _step(model, optimiser, [0, 2])
    assert torch.equal(_expert(model, 1)["0.A"], before["0.A"])


def test_an_optimiser_that_nobody_asked_about_is_torchs_own() -> None:
    model = _student()
    optimiser = OPTIMISERS["sgd"](model.parameters())
    _step(model, optimiser, [0, 1, 2])
    before = _expert(model, 1)
    _step(model, optimiser, [0, 2])
    assert not torch.equal(_expert(model, 1)["0.A"], before["0.A"])


def test_momentum_goes_on_as_if_the_absence_had_not_been() -> None:
    """Task 1 present, absent, present: as a plain parameter with a gradient, none, a gradient."""
    model = add_experts(nn.Linear(4, 4, bias=False), 2, rank=1)
    nn.init.normal_(model.module.B)
    model.module.weight.requires_grad_(False)
    optimiser = OPTIMISERS["sgd"](model.parameters())
    hold_absent(optimiser)
    alone = nn.Parameter(model.module.B.detach()[1].clone())
    alone_optimiser = OPTIMISERS["sgd"]([alone])
    x = torch.randn(2, 4)
    for tasks in ([0, 0], [0, 1], [0, 0], [1, 1]):
        optimiser.zero_grad()
        model(x, task=torch.tensor(tasks)).square().sum().backward()
        alone.grad = model.module.B.grad[1].clone() if 1 in tasks else None
        optimiser.step()
        alone_optimiser.step()
        torch.testing.assert_close(model.module.B.detach()[1], alone.detach(), rtol=0, atol=0)


def test_per_task_statistics_see_their_own_samples_only() -> None:
    model = _student()
    x = torch.randn(4, 3, 5, 5)
    ids = torch.tensor([2, 0, 2, 0])
    conv, norm = model.module[0], model.module[1]
    with torch.no_grad():
        dense = conv.dense_weight(2)
        rows = torch.nn.functional.conv2d(x[ids == 2], dense, conv.bias)
    model(x, task=ids)
    torch.testing.assert_close(norm.tasks[2].running_mean, 0.1 * rows.mean((0, 2, 3)))
    assert not norm.tasks[1].running_mean.any()
    assert norm.tasks[1].num_batches_tracked == 0


def test_a_single_value_a_channel_uses_the_running_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    model = add_experts(net, 2, rank=2, norm="per_task")
    x, ids = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 0])
    got = model.train()(x, task=ids)
    assert model.training and model.module[2].tasks[1].training
    assert model.module[2].tasks[1].num_batches_tracked == 0
    torch.testing.assert_close(got[1:2], model.eval()(x[1:2], task=1))
    got.sum().backward()
    assert model.module[2].tasks[1].weight.grad.any()


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.LayerNorm([4, 3, 3]), nn.GroupNorm(2, 4),
     nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4, affine=False)],
)  # fmt: skip
def test_norms_of_every_kind_are_per_task(norm: nn.Module) -> None:
    model = add_experts(nn.Sequential(nn.Conv2d(3, 4, 1), norm), 2, rank=2, norm="per_task")
    with torch.no_grad():
        for name, tensor in model.module[1].state_dict(keep_vars=True).items():
            if "num" not in name:
                tensor.uniform_(0.5, 2)
    model.eval()
    x, ids = torch.randn(5, 3, 3, 3), torch.tensor([1, 0, 1, 1, 0])
    got = model(x, task=ids)
    for task in range(2):
        torch.testing.assert_close(got[ids == task], model.dense(task)(x[ids == task]))
    assert not torch.equal(model.dense(0)(x), model.dense(1)(x))
