"""Ranks by task and layer, and which of them a layer can use."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts import add_experts
from lorkd_deploy.lowrank.delta import factor_shapes, largest_rank


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(96, 5)
    )


def test_the_closest_pattern_counts_whatever_the_order() -> None:
    patterns = {"0": 1, "[01]": 2, "*": 3}
    for given in (patterns, dict(reversed(patterns.items()))):
        model = add_experts(net(), 2, given)
        assert model.ranks_of(1) == {"0": 1, "1": 2, "3": 3}
    assert [model.module[i].A.shape[1] for i in (0, 1, 3)] == [1 * 3, 2, 3]


def test_tasks_with_patterns_and_numbers_and_rank_0() -> None:
    model = add_experts(net(), 3, [2, {"*": 1, "1": 0}, {"1": 4, "*": 0}], alpha=6).eval()
    assert [model.ranks_of(t)["1"] for t in range(3)] == [2, 0, 4]
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter)
    assert set(model.expert_state(1)) == {"0.A", "0.B", "3.A", "3.B"}
    assert set(model.expert_state(2)) == {"1.A", "1.B"}
    layer = model.module[1]
    assert torch.equal(layer.dense_weight(1), layer.weight)
    x, ids = torch.randn(5, 3, 6, 6), torch.tensor([2, 0, 1, 1, 2])
    for task in range(3):
        wanted = model.dense(task)(x[ids == task])
        torch.testing.assert_close(model(x, task=ids)[ids == task], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "what", "fix"),
    [
        ({"stem*": 2, "*": 1}, "'stem*'", "known: 0, 1, 3"),
        ({"0": 2}, "fits the layer '1'", "other layers"),
        ({"*": -1}, "at least 0", None),
        (0, "at least 1", None),
        (True, "at least 1", None),
        ([1, 2, 3], "3 ranks were given for 2 tasks", None),
        (9, "rank 9 of task 0 is above what any layer can use", "rank is 6"),
        ([6, 7], "rank 7 of task 1", "rank is 6"),
    ],
)
def test_wrong_ranks(rank: object, what: str, fix: str | None) -> None:
    module = net()
    with pytest.raises(UsageError) as caught:
        add_experts(module, 2, rank)  # type: ignore[arg-type]
    assert what in caught.value.what
    assert fix is None or fix in str(caught.value.fix)
    assert not hasattr(module[0], "A")


@pytest.mark.parametrize("options", [{"rank": {"block1*": 2, "*": 1}}, {"skip": ["block1*"]}])
def test_a_pattern_without_a_match_is_told_every_layer(options: dict[str, Any]) -> None:
    layers = {f"block{index}x": nn.Linear(4, 4) for index in range(20, 40)}
    with pytest.raises(UsageError, match=r"'block1\*'") as caught:
        add_experts(nn.Sequential(OrderedDict(layers)), 2, **options)
    assert caught.value.fix == "known: " + ", ".join(layers)
    assert next(iter(options)) in str(caught.value.where)


def test_a_rank_that_some_layers_cant_use_is_used_and_listed() -> None:
    model = add_experts(net(), 2, rank=6)
    assert model.wasteful == (("0", 3), ("3", 5))
    assert model.module[0].A.shape == (2, 6 * 3, 9)
    assert add_experts(net(), 2, rank=3).wasteful == ()


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (3, 8, 3, 3), (5, 4), (6, 5, 4, 2), (7, 5, 1, 3)])
@pytest.mark.parametrize("factorisation", ["interleaved", "separable"])
def test_the_largest_rank_is_where_any_matrix_can_be_reached(shape, factorisation) -> None:
    def reach(rank: int) -> int:
        (inner, columns), (rows, _) = factor_shapes(shape, rank, factorisation)
        return inner - min(rows, columns)  # surplus columns

    largest = largest_rank(shape, factorisation)
    assert reach(largest) >= 0 > reach(largest - 1)
    if factorisation == "interleaved" and shape[2:] == (3, 3):
        assert largest == min(shape[:2])


@pytest.mark.parametrize("factorisation", ["interleaved", "separable"])
def test_states_go_into_an_equal_model(factorisation) -> None:
    def student(seed: int, rank=(1, 2)) -> object:
        torch.manual_seed(seed)
        model = add_experts(net(), 2, rank, factorisation=factorisation)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        return model

    first, second = student(0), student(1)
    untouched = {k: v.clone() for k, v in second.expert_state(0).items()}
    second.load_base(first.base_state())
    second.load_expert(1, first.expert_state(1))
    for name, value in first.dense(1).state_dict().items():
        assert torch.equal(value, second.dense(1).state_dict()[name])
    assert all(torch.equal(v, second.expert_state(0)[k]) for k, v in untouched.items())
    with pytest.raises(ModelError, match=r"expert of task 1 doesn't fit.*0\.A"):
        second.load_expert(1, student(2, (1, 1)).expert_state(1))
    with pytest.raises(ModelError, match="the base doesn't fit"):
        second.load_base({"0.weight": first.base_state()["0.weight"]})
