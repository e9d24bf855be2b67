from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorkd_deploy import delta_weight
from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts import ExpertClassifier, TaskHeads, add_experts, route_of_counts


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.point(self.mix(self.bn(self.conv(x)).relu())))
        return self.fc(self.drop(x.mean((2, 3))))


def _student(norm="shared", **kw):
    torch.manual_seed(0)
    model = add_experts(Net(), 3, rank=2, alpha=5, norm=norm, **kw)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor.data, 0.5, 2)
        elif tensor.is_floating_point() and (tensor.dim() == 1 or name.endswith(".B")):
            nn.init.normal_(tensor.data, std=0.5)
    return model


X = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([2, 0, 1, 2, 2, 0, 2])


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
    model = _student(norm).double().eval()
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
    model = _student(norm)
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
    model = _student()
    before = copy.deepcopy(model.state_dict())
    dense = model.dense(0)
    with torch.no_grad():
        for p in dense.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_train_eval_state_dict_deepcopy_and_memory_format(norm: str) -> None:
    model = _student(norm)
    assert model.train(False) is model
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    model.eval()
    wanted = model(X, task=IDS)

    clone = copy.deepcopy(model)
    other = _student(norm)
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
    model = _student().eval()
    same = torch.full((7,), 2)
    torch.testing.assert_close(model(X, task=2), model(X, task=same))


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.fc(x)
        return {"rows": y, "pair": (y * 2, [y.sum()]), "note": "kept"}


def test_nested_outputs_come_back_in_the_batch_order() -> None:
    model = add_experts(Outputs(), 3, rank=2)
    nn.init.normal_(model.module.fc.B)
    ids, x = torch.tensor([2, 0, 2]), torch.randn(3, 4)
    out = model(x, task=ids)
    wanted = torch.cat([model(x[n : n + 1], task=int(t))["rows"] for n, t in enumerate(ids)])
    torch.testing.assert_close(out["rows"], wanted)
    torch.testing.assert_close(out["pair"][0], wanted * 2)
    torch.testing.assert_close(out["pair"][1][0], wanted.sum())
    assert out["note"] == "kept"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 0, 0]), "no task 3"),
        (torch.tensor([0, -1, 2, 0, 0, 0, 0]), "no task -1"),
        (torch.zeros(7, dtype=torch.int32), "torch.int32"),
        (torch.zeros(7), "torch.float32"),
        (torch.zeros(6, dtype=torch.int64), r"\(6,\)"),
        (torch.zeros(7, 1, dtype=torch.int64), r"\(7, 1\)"),
        (3, "no task 3"),
        (-1, "no task -1"),
        (True, "bool"),
        ("0", "str"),
    ],
)
def test_wrong_ids_are_clear_errors(task, message: str) -> None:
    model = _student()
    with pytest.raises(UsageError, match=message):
        model(X, task=task)
    model(X, task=0)  # and the model is as usable as before


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        _student()(X[:0], task=torch.zeros(0, dtype=torch.int64))


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


def test_a_layer_that_sees_windows_is_named() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.window = nn.Linear(8, 8)

        def forward(self, x):
            x = self.fc(x)
            return self.window(x.reshape(-1, 2, 8)).view(x.shape)

    with pytest.raises(ModelError, match="leading dimension isn't the batch") as caught:
        add_experts(Windows(), 2)(torch.randn(3, 4, 8), task=0)
    assert caught.value.where == "window"


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
        add_experts(_student(), 2)


def test_heads_have_their_own_class_counts_and_absent_ones_no_gradient() -> None:
    model = ExpertClassifier(_student().eval(), 5, [2, 4, 3])
    ids = torch.tensor([2, 0, 2, 2, 0, 0, 2])
    features, logits = model(X, task=ids)
    assert features.shape == (7, 5)
    assert [tuple(rows.shape) for rows in logits] == [(3, 2), (0, 4), (4, 3)]
    torch.testing.assert_close(logits[2], model.heads.head(2)(features[ids == 2]))
    sum(rows.sum() for rows in logits).backward()
    assert model.heads.head(1).weight.grad is None
    assert model.heads.head(0).weight.grad.any()
    backbone, head = model.dense(2)
    torch.testing.assert_close(head(backbone(X[ids == 2])), logits[2], rtol=1e-5, atol=1e-5)
    assert [len(rows) for rows in model(X, task=1).logits] == [0, 7, 0]
    with pytest.raises(UsageError, match="2 heads were asked for 3 tasks"):
        ExpertClassifier(_student(), 5, [2, 4])


def test_heads_serve_a_plain_teacher_too() -> None:
    heads = TaskHeads(4, [2, 3])
    logits = heads(torch.randn(3, 4), torch.tensor([1, 0, 1]))
    assert [tuple(rows.shape) for rows in logits] == [(1, 2), (2, 3)]


def test_a_route_planned_from_counts_gives_what_its_ids_give() -> None:
    model = ExpertClassifier(_student().eval(), 5, [2, 4, 3])
    for counts in ([4, 0, 3], [1, 2, 4], [4, 2, 1], [0, 7, 0]):
        ids = torch.repeat_interleave(torch.tensor(counts))
        wanted, got = model(X, task=ids), model(X, task=route_of_counts(counts, X.device))
        assert torch.equal(got.features, wanted.features)
        for task, (ours, theirs) in enumerate(zip(got.logits, wanted.logits, strict=True)):
            assert torch.equal(ours, theirs) and len(ours) == counts[task]


def test_a_route_of_another_batch_or_model_is_an_error() -> None:
    model = _student()
    for counts in ([3, 3, 2], [4, 3], [3, 2, 1, 1]):
        with pytest.raises(UsageError, match="the route is of"):
            model(X, task=route_of_counts(counts, X.device))
    with pytest.raises(UsageError, match="empty"):
        route_of_counts([0, 0], X.device)


class Waits(TorchDispatchMode):
    """The operations that on a GPU would wait for it: each tells the CPU a tensor's values."""

    names = ("_local_scalar_dense", "nonzero", "bincount", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        masks = [i for i in args[1] if i is not None] if name == "index" else []
        if name in self.names or any(i.dtype == torch.bool for i in masks):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_route_planned_from_counts_waits_for_no_gpu() -> None:
    model = ExpertClassifier(_student("per_task"), 5, [2, 4, 3])
    route = route_of_counts([4, 0, 3], X.device)
    with Waits() as waits:
        sum(rows.sum() for rows in model(X, task=route).logits).backward()
    assert waits.seen == []
    with Waits() as waits:
        model(X, task=IDS)
    assert "bincount" in waits.seen
