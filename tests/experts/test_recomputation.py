"""Activation checkpointing: layers with experts that a backward calls again know their tasks."""

from __future__ import annotations

import odd_networks
import pytest
import torch
from torch import Tensor

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import ExpertModel, add_experts


def student(use_reentrant: bool | None) -> ExpertModel:
    torch.manual_seed(0)
    made = add_experts(odd_networks.recomputes(use_reentrant), 3, 2, norm="per_task").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made


def gradients(use_reentrant: bool | None) -> list[Tensor]:
    """Of two forwards with other tasks, and one backward through both."""
    model = student(use_reentrant)
    images, tasks = torch.randn(6, 3, 16, 16), torch.tensor([0, 2, 1, 1, 0, 2])
    earlier = model(images[:4], tasks[:4]).square().sum()
    (earlier + model(images[3:], tasks[3:]).sum()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_are_those_without_checkpointing(use_reentrant: bool) -> None:
    pairs = zip(gradients(use_reentrant), gradients(None), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_outside_of_a_backward_a_layer_still_needs_its_model() -> None:
    model = student(False)
    model(torch.randn(2, 3, 16, 16), 1).sum().backward()
    with pytest.raises(ModelError, match="outside its ExpertModel"):
        model.module.last(torch.randn(2, 8, 4, 4))
