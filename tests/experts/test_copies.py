from __future__ import annotations

import copy

import odd_networks
import pytest
import torch

from lorkd_deploy.experts import add_experts
from lorkd_deploy.experts.copies import copy_of


def test_a_module_with_computed_weights_is_copied() -> None:
    module = odd_networks.computes_weights().eval()
    images = torch.randn(2, 3, 16, 16)
    expected = module(images)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    made = copy_of(module)
    assert torch.equal(made(images), expected)
    made[0][0].weight_g.data *= 2
    assert not torch.equal(made(images), expected)
    assert torch.equal(module(images), expected)


def test_a_student_with_computed_weights_becomes_dense() -> None:
    student = add_experts(odd_networks.computes_weights(), 2).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = student(images, 1)
    torch.testing.assert_close(student.dense(1)(images), expected)
