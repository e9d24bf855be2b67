"""The objective: its parts and their sum, and what stays as it is while the rest is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe
from torch import Tensor, nn

from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.networks.network import TeacherNetwork


class Constant(nn.Module):
    """A transfer loss that is what it has learnt: two, at first."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Any, output: Any) -> Tensor:
        assert len(batch.images) == len(output.features)
        return self.value.clone()


@pytest.fixture(scope="module")
def setup() -> Setup:
    transfer = {"kind": "features", "beta": 3.0}
    return open_setup(parse_recipe(tiny_recipe(transfer=transfer), where="test"))


def _objective(setup: Setup, **options: Any) -> Objective:
    torch.manual_seed(0)
    network = TeacherNetwork(backbone(), 16, setup.classes)
    return Objective(network, setup, setup.recipe.train, **options).train()


def test_the_transfer_is_weighted_and_what_it_has_of_its_own_is_trained(setup: Setup) -> None:
    batch = setup.loader(setup.recipe.train, 1).at(0)
    plain, both = _objective(setup)(batch), _objective(setup, transfer=Constant())
    found = both(batch)
    torch.testing.assert_close(found.parts["labels"], plain.parts["labels"])
    assert set(plain.parts) == {"labels"}
    assert found.parts["transfer"].item() == 3 * 2
    torch.testing.assert_close(found.total, plain.total + 6)
    assert 0 <= found.accuracy.item() <= 1
    found.total.backward()
    gradients = {name: p.grad for name, p in both.named_parameters() if p.grad is not None}
    assert float(gradients["transfer.value"]) == 3
    assert {name.split(".")[0] for name in gradients} == {"transfer", "network"}


def test_frozen_modules_keep_their_statistics_in_training(setup: Setup) -> None:
    batch = setup.loader(setup.recipe.train, 1).at(0)
    for frozen in (True, False):
        network = TeacherNetwork(backbone(), 16, setup.classes)
        kept = [network.backbone] if frozen else []
        objective = Objective(network, setup, setup.recipe.train, frozen=kept).train()
        assert objective.training and network.heads.training
        before = {name: value.clone() for name, value in network.named_buffers()}
        objective(batch)
        after = dict(network.named_buffers())
        assert all(torch.equal(after[name], value) for name, value in before.items()) == frozen
