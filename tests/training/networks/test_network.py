"""Where a network lies in memory."""

from __future__ import annotations

import logging

import numpy as np
import odd_networks
import pytest
import torch
from torch import nn

from lorkd_deploy.experts import ExpertClassifier, add_experts
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.training.networks.network import (
    TeacherNetwork,
    memory_order,
    network_input,
    place,
)

CPU = torch.device("cpu")
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
IMAGES = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("kind", "asked", "order"),
    [
        ("pools", True, LAST),
        ("pools", False, CONTIGUOUS),
        ("flattens_by_view", True, CONTIGUOUS),
        ("flattens_by_view", False, CONTIGUOUS),
    ],
)
def test_channels_last_is_left_out_where_a_network_cannot_be_run_in_it(
    role: str,
    kind: str,
    asked: bool,
    order: torch.memory_format,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    backbone = getattr(odd_networks, kind)()
    features = backbone(torch.zeros(2, 3, 16, 16)).shape[1]
    network: nn.Module = TeacherNetwork(backbone, features, [3])
    if role == "student":
        network = ExpertClassifier(add_experts(backbone, 1), features, [3])
    place(network, CPU, channels_last=asked, size=16)
    assert network.training
    assert memory_order(network) == order
    x = network_input(IMAGES, Preprocess(size=16), network)
    assert x.is_contiguous(memory_format=order)
    network(x, 0)
    assert ("contiguous memory" in caplog.text) == (asked and order == CONTIGUOUS)
