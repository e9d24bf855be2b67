"""Where a network lies in memory."""

from __future__ import annotations

import logging
from typing import Any

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


@pytest.mark.parametrize("order", [LAST, CONTIGUOUS])
@pytest.mark.parametrize("kind", ["array", "read-only array", "mirrored view", "tensor"])
def test_a_network_is_given_the_numbers_that_engines_are_given(
    kind: str, order: torch.memory_format
) -> None:
    """By torch, wherever the network is, and by NumPy: the same bits."""
    preprocess = Preprocess(size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    known = torch.from_numpy(preprocess.normalise(images))
    given: Any = images
    if kind == "read-only array":
        images.flags.writeable = False
    elif kind == "mirrored view":
        given = images[:, :, ::-1].copy()[:, :, ::-1]
    elif kind == "tensor":
        given = torch.from_numpy(images)
    network = nn.Conv2d(3, 4, 3).to(memory_format=order)  # type: ignore[call-overload]
    x = network_input(given, preprocess, network)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=order)
    torch.testing.assert_close(x, known, rtol=0, atol=0, check_stride=False)


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
