"""BatchNorms of each task in one node of autograd's graph: the same bits as a call of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lorkd_deploy.experts import add_experts, norms

TASKS, CHANNELS = 4, 5


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.point = nn.Conv2d(3, CHANNELS, 1)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.point(x))


def trained(norm: Callable[[], nn.Module], ids: list[int], dtype: torch.dtype, **frozen: Any):
    """A step's output, gradients and state."""
    torch.manual_seed(0)
    model = add_experts(Net(norm()), TASKS, rank=2, norm="per_task").to(dtype)
    for name, value in model.named_parameters():
        if "norm.tasks" in name:
            nn.init.uniform_(value, 0.5, 1.5)
            value.requires_grad_(not any(name.endswith(end) for end in frozen.get("ends", ())))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(len(ids), 3, 4, 3, dtype=dtype, requires_grad=True)
    y = model(x, task=torch.tensor(ids))
    y.mul(torch.randn_like(y)).sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"y": y, "x": x.grad, **grads, **model.state_dict()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(), (".weight",), (".weight", ".bias")])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3] * 2, [3, 1, 3, 3, 0, 3]])
def test_together_they_are_as_each_alone(
    monkeypatch: pytest.MonkeyPatch, ids: list[int], ends: tuple[str, ...], dtype: torch.dtype
) -> None:
    def norm() -> nn.Module:
        return nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)

    used = []
    apply = norms._EachTask.apply
    monkeypatch.setattr(norms._EachTask, "apply", lambda *given: used.append(1) or apply(*given))
    together = trained(norm, ids, dtype, ends=ends)
    assert used
    monkeypatch.setattr(norms, "_together", lambda *_: None)
    alone = trained(norm, ids, dtype, ends=ends)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(together[name], value), name
    counters = [together[f"module.norm.tasks.{t}.num_batches_tracked"] for t in range(TASKS)]
    assert [int(n) for n in counters] == [int(t in ids) for t in range(TASKS)]


def hooked() -> nn.Module:
    norm = nn.BatchNorm2d(CHANNELS)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        hooked,
        lambda: nn.BatchNorm2d(CHANNELS, affine=False),
        lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
        lambda: nn.GroupNorm(1, CHANNELS),
    ],
    ids=["hook", "no weights", "mean of all batches", "another kind"],
)
def test_others_are_called_one_by_one(
    monkeypatch: pytest.MonkeyPatch, norm: Callable[[], nn.Module]
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("these aren't the usual ones")

    monkeypatch.setattr(norms._EachTask, "apply", never)
    made = trained(norm, [0, 1, 1], torch.float32)
    assert made["y"].shape == (3, CHANNELS, 4, 3)


def test_an_input_without_a_gradient_gets_none() -> None:
    torch.manual_seed(0)
    model = add_experts(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), 2, 2, norm="per_task")
    model(torch.randn(5, 3, 4, 4), task=torch.tensor([0, 1, 1, 0, 0])).sum().backward()
    assert all(p.grad is not None for p in model.module[0].parameters())


def test_a_hook_on_every_module_sees_them_too() -> None:
    model = add_experts(Net(nn.BatchNorm2d(CHANNELS)), TASKS, rank=2, norm="per_task")
    x, ids, seen = torch.randn(3, 3, 4, 3), torch.tensor([0, 1, 1]), []
    model(x, task=ids)  # the first call tries the route, too
    hook = register_module_forward_pre_hook(lambda module, _: seen.append(type(module)))
    try:
        model(x, task=ids)
    finally:
        hook.remove()
    assert seen.count(nn.BatchNorm2d) == 2  # of two tasks
