from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from lorkd_deploy import delta_weight
from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts import add_experts
from tests.experts.small_student import IDS, Net, X, student


def test_starts_as_the_plain_module_and_shares_its_weight() -> None:
    net = Net().eval()
    wanted, weight = net(X), net.conv.weight
    model = add_experts(net, 3)
    assert model.module is net
    assert net.conv.weight is weight
    torch.testing.assert_close(model(X, task=IDS), wanted, rtol=0, atol=1e-6)


def test_shapes_and_start_of_the_factors() -> None:
    model = add_experts(Net(), 3, rank=2)
    a, b = model.module.conv.A, model.module.conv.B
    assert a.shape == (3, 2 * 3, 3 * 3)
    assert b.shape == (3, 8 * 3, 2 * 3)
    assert not b.any()
    bound = 1 / 3**0.5 / 3**0.5  # kaiming uniform, a = √5: 1/√fan_in, fan_in = Cin·kw = 9
    assert a.abs().max() <= bound
    assert a.detach().std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert model.module.fc.A.shape == (3, 2, 6)
    assert model.module.fc.B.shape == (3, 5, 2)


def test_layers_and_skipped_are_listed_by_plain_name() -> None:
    model = add_experts(Net(), 3)
    assert [(e.name, e.kind, e.shape) for e in model.layers] == [
        ("conv", "conv2d", (8, 3, 3, 3)),
        ("point", "conv2d", (6, 8, 1, 1)),
        ("fc", "linear", (5, 6)),
    ]
    assert model.skipped == (("mix", "a grouped convolution (4 groups)"),)


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_dense_equals_unfused(norm: str) -> None:
    model = student(norm).double().eval()
    for task in range(3):
        dense = model.dense(task)
        assert type(dense) is Net
        assert {type(m) for m in dense.modules()} == {type(m) for m in Net().modules()}
        assert not dense.training
        torch.testing.assert_close(
            dense(X.double()), model(X.double(), task=task), rtol=1e-12, atol=1e-12
        )
    mixed = model(X.double(), task=IDS)
    for task in range(3):
        rows = task == IDS
        torch.testing.assert_close(mixed[rows], model.dense(task)(X[rows].double()))


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_base_and_expert_state_rebuild_the_dense_module(norm: str) -> None:
    model = student(norm)
    base, expert = model.base_state(), model.expert_state(1)
    rebuilt = dict(base)
    for layer in model.layers:
        a, b = expert[f"{layer.name}.A"], expert[f"{layer.name}.B"]
        key = f"{layer.name}.weight"
        rebuilt[key] = base[key] + delta_weight(a, b, 5 / 2, layer.shape)
    rebuilt |= {k: v for k, v in expert.items() if not k.endswith((".A", ".B"))}
    plain = Net().eval()
    names = {k for k in plain.state_dict() if not k.endswith("num_batches_tracked")}
    assert rebuilt.keys() == names
    assert ("bn.running_mean" in base) == ("norm.weight" in base) == (norm == "shared")
    plain.load_state_dict(rebuilt, strict=False)
    torch.testing.assert_close(plain(X), model.eval()(X, task=1), rtol=1e-5, atol=1e-5)


def test_dense_shares_nothing_and_changes_nothing() -> None:
    model = student()
    before = copy.deepcopy(model.state_dict())
    dense = model.dense(0)
    with torch.no_grad():
        for p in dense.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_train_eval_state_dict_deepcopy_and_memory_format(norm: str) -> None:
    model = student(norm)
    assert model.train(False) is model
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    model.eval()
    wanted = model(X, task=IDS)

    clone = copy.deepcopy(model)
    other = student(norm)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(model.state_dict())
    for twin in (clone, other.eval()):
        assert torch.equal(twin(X, task=IDS), wanted)
    with torch.no_grad():
        model.module.conv.weight.zero_()
    assert torch.equal(clone(X, task=IDS), wanted)

    last = clone.to(memory_format=torch.channels_last)
    assert last.module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    got = last(X.to(memory_format=torch.channels_last), task=IDS)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_double_after_adding_experts_keeps_alpha_over_rank_exact() -> None:
    model = add_experts(nn.Linear(4, 4), 2, rank=3, alpha=16)
    nn.init.normal_(model.module.B)
    model.double()
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x, task=1), model.dense(1)(x), rtol=1e-12, atol=1e-12)


def test_one_task_is_an_int() -> None:
    model = student().eval()
    same = torch.full((7,), 2)
    torch.testing.assert_close(model(X, task=2), model(X, task=same))


def test_a_layer_that_is_never_called_is_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.proj(x)
            return self.attention(x, x, x)[0]

    x = torch.randn(2, 4, 8)
    model = add_experts(Attention(), 2)
    with pytest.raises(ModelError, match=r"attention\.out_proj"):
        model(x, task=0)
    assert ("attention", "MultiheadAttention holds weights that are no Conv2d's or Linear's: "
            "all tasks share them") in model.skipped  # fmt: skip
    model = add_experts(Attention(), 2, skip=["*.out_proj"])
    assert model(x, task=torch.tensor([1, 0])).shape == (2, 4, 8)
    assert ("attention.out_proj", "left out as asked") in model.skipped


def test_layers_called_twice_or_registered_twice_work() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    model = add_experts(Twice(), 2)
    assert model.module.a is model.module.b
    assert [e.name for e in model.layers] == ["a"]
    nn.init.normal_(model.module.a.B)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x, task=1), model.dense(1)(x))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(3)])
def test_binding_to_no_layer_is_an_error(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer of"):
        add_experts(module, 2)


def test_a_convolution_of_its_own_kind_is_skipped_and_listed() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    net = nn.Sequential(Standardised(3, 4, 1), nn.Conv2d(4, 4, 1))
    model = add_experts(net, 2)
    assert model.skipped == (("0", "Standardised computes something of its own from its weight"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": 0}, "tasks is 0"),
        ({"tasks": 2, "rank": 0}, "rank is 0"),
        ({"tasks": 2, "rank": [4]}, "1 ranks were given for 2 tasks"),
        ({"tasks": 2, "rank": [4, 0]}, "rank is"),
        ({"tasks": 2, "alpha": 0}, "alpha is 0"),
        ({"tasks": 2, "norm": "per-task"}, "no norm is called 'per-task'"),
        ({"tasks": 2, "skip": ["convv"]}, "'convv'"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        add_experts(Net(), **arguments)


def test_adding_experts_twice_is_an_error() -> None:
    with pytest.raises(ModelError, match="already has experts"):
        add_experts(student(), 2)


def test_nothing_of_a_dense_module_stays_once_it_is_gone() -> None:
    """Where its parts know each other in a circle, the first forward's trial keeps its memory."""
    model = student()
    gc.disable()
    try:
        made = model.dense(1)
        parts = [weakref.ref(part) for part in made.modules()]
        del made
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()
