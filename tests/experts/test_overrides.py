"""Tensors that a task has instead of the shared ones: the same in every way out of the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import ExpertModel, add_experts

X = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([2, 0, 1, 2, 2, 0, 2])


class Net(nn.Module):
    """A bias behind experts, a grouped convolution, a norm, and a parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, groups=8)
        self.token = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(self.norm(self.conv(x)).relu()).mean((2, 3)) * self.token


def student() -> ExpertModel:
    torch.manual_seed(0)
    model = add_experts(Net(), 3, rank=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def own() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"conv.bias": (8,), "mix.weight": (8, 1, 3, 3), "token": (8,)}
    shapes |= {"norm.running_mean": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_only_its_own_task_has_them() -> None:
    model = student()
    before = model(X, task=IDS)
    base = {name: value.clone() for name, value in model.base_state().items()}
    model.override(2, own())
    after = model(X, task=IDS)
    # Not to the bit: the others' rows are products of another size where task 2 isn't among them.
    torch.testing.assert_close(after[IDS != 2], before[IDS != 2])
    assert (after[IDS == 2] - before[IDS == 2]).abs().min() > 1e-4
    dense = model.dense(2)
    torch.testing.assert_close(dense(X[IDS == 2]), after[IDS == 2])
    assert all(torch.equal(dense.state_dict()[name], value) for name, value in own().items())
    assert all(torch.equal(value, base[name]) for name, value in model.base_state().items())


def test_they_go_with_the_expert_and_with_the_model() -> None:
    first, second = student(), student()
    first.override(2, own())
    second.load_expert(2, first.expert_state(2))
    assert torch.equal(second(X, task=IDS), first(X, task=IDS))
    wanted = first(X, task=IDS).double()
    torch.testing.assert_close(first.double()(X.double(), task=IDS), wanted, rtol=1e-4, atol=1e-4)
    second.load_expert(2, student().expert_state(2))
    assert second.overrides == [{}, {}, {}]


@pytest.mark.parametrize(
    "state",
    [
        {"conv.weight": torch.zeros(8, 3, 3, 3)},  # ΔW is for that
        {"conv.A": torch.zeros(8, 3)},
        {"token": torch.zeros(7)},
    ],
)
def test_what_is_not_shared_is_refused(state: dict[str, torch.Tensor]) -> None:
    model = student()
    with pytest.raises(ModelError, match="instead of shared tensors"):
        model.override(1, state)
    assert model.overrides == [{}, {}, {}]


class Pair(Net):
    """A tuple and a mapping for an output."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # type: ignore[override]
        y = super().forward(x)
        return y, {"half": y[:, :4]}


def test_outputs_of_any_structure_are_put_together() -> None:
    model = add_experts(Pair(), 3, rank=2).eval()
    model.override(2, own())
    whole, more = model(X, task=IDS)
    for row, task in enumerate(IDS.tolist()):
        expected = model.dense(task)(X[row : row + 1])[0]
        torch.testing.assert_close(whole[row : row + 1], expected)
    assert torch.equal(more["half"], whole[:, :4])
