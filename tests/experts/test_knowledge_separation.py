"""Mixed batches against the plain formula: every sample alone, by its own dense weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_backbone import transformer
from torch import Tensor, nn
from torch.func import functional_call

from lorkd_deploy.experts import ExpertModel, add_experts, convolutions, rows
from lorkd_deploy.experts.rows import cheaper_form
from lorkd_deploy.models import build

TASKS = 5
NORMS = ("shared", "per_task")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the tensor's largest absolute value
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 6), (7,)),
    "linear-tokens": (lambda: nn.Linear(7, 6, bias=False), (3, 7)),
    "pointwise": (lambda: nn.Conv2d(6, 10, 1), (6, 5, 4)),
    "pointwise-no-bias": (lambda: nn.Conv2d(6, 4, 1, bias=False), (6, 5, 4)),
    "pointwise-stride": (lambda: nn.Conv2d(6, 8, 1, stride=(2, 1), bias=False), (6, 5, 4)),
    "pointwise-padding": (lambda: nn.Conv2d(6, 8, 1, padding=1), (6, 3, 3)),
    "pointwise-same": (lambda: nn.Conv2d(6, 8, 1, padding="same"), (6, 3, 3)),
    "3x3": (lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False), (6, 6, 5)),
    "3x3-wide": (lambda: nn.Conv2d(32, 48, 3, padding=1, bias=False), (32, 3, 3)),
    "3x3-stride-bias": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 7, 6)),
    "3x3-same-dilation": (lambda: nn.Conv2d(5, 6, 3, padding="same", dilation=2), (5, 6, 7)),
    "3x3-reflect": (lambda: nn.Conv2d(5, 6, 3, padding=1, padding_mode="reflect"), (5, 6, 5)),
    "3x3-circular": (lambda: nn.Conv2d(5, 6, 3, padding=2, padding_mode="circular"), (5, 6, 5)),
    "1x5": (lambda: nn.Conv2d(5, 6, (1, 5), padding=(0, 2)), (5, 4, 7)),
    "4x2-uneven": (lambda: nn.Conv2d(5, 6, (4, 2), (3, 1), (2, 1), (1, 2)), (5, 8, 7)),
    "patches": (lambda: nn.Conv2d(3, 16, 4, stride=4), (3, 8, 8)),
    "valid": (lambda: nn.Conv2d(5, 6, (3, 2), padding="valid"), (5, 6, 5)),
}
BATCHES = {
    "balanced": [0, 1, 2, 3, 4] * 2,
    "absent-and-uneven": [3, 1, 3, 3, 0, 3, 1, 3],
    "sorted": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "fewer-than-tasks": [4, 2],
    "one-task": [2, 2, 2],
}


def _always(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, convolutions):
        monkeypatch.setattr(module, "cheaper_form", lambda *_: form)


def _fill(model: ExpertModel) -> None:
    """Nonzero B: a new expert's ΔW is zero, which would hide most mistakes."""
    for name, parameter in model.named_parameters():
        if name.endswith(".B") or name == "B":
            for task, rank in enumerate(_ranks(model)):
                height = parameter.shape[2] // max(_ranks(model))
                nn.init.normal_(parameter.data[task, :, : rank * height], std=0.3)


def _ranks(model: ExpertModel) -> tuple[int, ...]:
    return next(m.ranks for m in model.modules() if hasattr(m, "ranks"))


def _stacks(model: ExpertModel) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for entry in model.layers:
        layer = model.module.get_submodule(entry.name)
        found[f"{entry.name}.weight".lstrip(".")] = (layer.A, layer.B)
    return found


def _per_sample(plain: nn.Module, model: ExpertModel, alpha: float, x: Tensor, ids: list[int]):
    """method.md's formula, each sample alone by a dense weight, with autograd through all of it."""
    of_task = {task: _dense_state(plain, model, alpha, task) for task in set(ids)}
    return torch.cat(
        [functional_call(plain, of_task[t], (x[n : n + 1],)) for n, t in enumerate(ids)]
    )


def _dense_state(plain: nn.Module, model: ExpertModel, alpha: float, task: int):
    """Every parameter and buffer of `plain` for one task; a norm's are its own where it has one."""
    shared = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    stacks, ranks, state = _stacks(model), _ranks(model), {}
    for name in plain.state_dict():
        place, _, leaf = name.rpartition(".")
        own = f"{place}.tasks.{task}.{leaf}"
        state[name] = shared[own] if own in shared else shared[name]
        if name in stacks:
            a, b = stacks[name]
            rows = ranks[task] * (a.shape[1] // max(ranks))
            delta = (b[task][:, :rows] @ a[task][:rows]).view(state[name].shape)
            state[name] = state[name] + delta * (alpha / ranks[task])
    return state


def _grads(y: Tensor, x: Tensor, model: ExpertModel) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    x.grad = None
    torch.manual_seed(5)
    y.backward(torch.randn(y.shape, dtype=y.dtype))
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**named, "x": x.grad.clone()}


def _assert_close(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    error = (got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300)
    assert error <= tolerance, f"{what}: {error:.1e}"


def _compare(plain, model, x, ids, *, alpha, tolerance):
    y = model(x, task=torch.tensor(ids))
    wanted = _per_sample(plain, model, alpha, x, ids)
    assert y.shape == wanted.shape
    _assert_close(y, wanted, tolerance, "output")
    got, reference = _grads(y, x, model), _grads(wanted, x, model)
    assert got.keys() == reference.keys()
    for name, value in reference.items():
        _assert_close(got[name], value, tolerance, name)
    return got


@pytest.mark.parametrize("form", ["fused", "low_rank"])
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [*((b, torch.float64) for b in BATCHES), ("absent-and-uneven", torch.float32)],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_kind_equals_the_per_sample_formula(
    kind, batch, form, dtype, monkeypatch
) -> None:
    _always(form, monkeypatch)
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, ids = make().to(dtype), BATCHES[batch]
    plain = make().to(dtype)
    model = add_experts(layer, TASKS, rank=3, alpha=7)
    _fill(model)
    x = torch.randn(len(ids), *shape, dtype=dtype, requires_grad=True)
    grads = _compare(plain, model, x, ids, alpha=7, tolerance=TOLERANCE[dtype])
    for task in set(range(TASKS)) - set(ids):
        assert not grads["module.A"][task].any()
        assert not grads["module.B"][task].any()
    assert all(grads["module.B"][task].any() for task in set(ids))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["fused", "low_rank"])
@pytest.mark.parametrize("kind", ["linear", "pointwise", "3x3", "3x3-wide", "1x5", "4x2-uneven"])
def test_separable_factors_equal_the_per_sample_formula(kind, form, dtype, monkeypatch) -> None:
    _always(form, monkeypatch)
    make, shape = LAYERS[kind]
    torch.manual_seed(4)
    layer, plain, ids = make().to(dtype), make().to(dtype), BATCHES["absent-and-uneven"]
    model = add_experts(layer, TASKS, [2, 1, 3, 2, 1], alpha=7, factorisation="separable")
    _fill(model)
    x = torch.randn(len(ids), *shape, dtype=dtype, requires_grad=True)
    _compare(plain, model, x, ids, alpha=7, tolerance=TOLERANCE[dtype])


def test_separable_is_a_convolution_to_r_channels_and_a_pointwise_one() -> None:
    torch.manual_seed(5)
    layer = nn.Conv2d(5, 7, 3, padding=1)
    layer.weight.data.zero_()
    model = add_experts(layer, 2, rank=2, alpha=6, factorisation="separable").eval()
    _fill(model)
    x = torch.randn(3, 5, 6, 6)
    a, b = layer_factors = model.module.factors(1)
    assert [tuple(f.shape) for f in layer_factors] == [(2, 5 * 9), (7, 2)]
    inner = torch.conv2d(x, a.view(2, 5, 3, 3), padding=1)
    wanted = torch.conv2d(inner, b.view(7, 2, 1, 1) * 3, layer.bias)
    torch.testing.assert_close(model(x, task=1), wanted, rtol=1e-4, atol=1e-5)
    delta = model.module.dense_weight(1).detach()
    assert torch.linalg.matrix_rank(delta.flatten(1)) == 2
    interleaved = add_experts(nn.Conv2d(5, 7, 3), 2, rank=2)
    _fill(interleaved)
    full = (interleaved.module.dense_weight(1) - interleaved.module.weight).detach()
    assert torch.linalg.matrix_rank(full.flatten(1)) > 2  # what the papers' view hides


@pytest.mark.parametrize("form", ["fused", "low_rank"])
@pytest.mark.parametrize("kind", ["linear", "pointwise-stride", "3x3", "3x3-wide", "1x5"])
def test_channels_last_and_float32(kind, form, monkeypatch) -> None:
    _always(form, monkeypatch)
    make, shape = LAYERS[kind]
    torch.manual_seed(1)
    layer, plain, ids = make(), make(), BATCHES["absent-and-uneven"]
    model = add_experts(layer, TASKS, rank=3, alpha=7)
    _fill(model)
    x = torch.randn(len(ids), *shape)
    if x.dim() == 4:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    _compare(plain, model, x.requires_grad_(), ids, alpha=7, tolerance=1e-4)


@pytest.mark.parametrize("form", ["fused", "low_rank"])
@pytest.mark.parametrize("kind", ["linear-tokens", "pointwise", "3x3", "4x2-uneven"])
def test_a_rank_for_each_task(kind, form, monkeypatch) -> None:
    _always(form, monkeypatch)
    make, shape = LAYERS[kind]
    torch.manual_seed(2)
    layer, plain, ids = make().double(), make().double(), BATCHES["balanced"]
    model = add_experts(layer, TASKS, rank=[1, 3, 2, 3, 2], alpha=5)
    _fill(model)
    x = torch.randn(len(ids), *shape, dtype=torch.float64, requires_grad=True)
    _compare(plain, model, x, ids, alpha=5, tolerance=1e-10)
    for entry, rank in ((model.expert_state(0), 1), (model.expert_state(1), 3)):
        height = layer.weight.shape[2] if layer.weight.dim() == 4 else 1
        assert entry["A"].shape[0] == entry["B"].shape[1] == rank * height


class Net(nn.Module):
    """Every layer kind behind one another, with norms, as a network would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.norm = nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depthwise(self.stem(x)))
        return self.mlp(self.norm(x.flatten(2).mT)).amax(1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "net": (Net, 8),
    "shufflenet": (lambda: build("torchvision:shufflenet_v2_x0_5"), 32),
    "resnet18": (lambda: build("torchvision:resnet18"), 32),
    "transformer": (transformer, 32),
}


def _settle(model: ExpertModel) -> None:
    """Norms that change something, and that differ between tasks where these have their own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize(
    ("network", "batch", "norm", "factorisation"),
    [
        *(("net", batch, norm, "interleaved") for batch in BATCHES for norm in NORMS),
        *(
            (network, "absent-and-uneven", norm, "interleaved")
            for network in ("shufflenet", "resnet18", "transformer")
            for norm in NORMS
        ),
        ("resnet18", "absent-and-uneven", "per_task", "separable"),
    ],
)
def test_a_whole_network_equals_the_per_sample_formula(
    network: str, batch: str, norm: Any, factorisation: Any
) -> None:
    torch.manual_seed(3)
    make, size = NETWORKS[network]
    net, plain = make().double(), make().double().eval()
    ranks = {"rank": 2, "alpha": 3, "factorisation": factorisation}
    model = add_experts(net, TASKS, norm=norm, **ranks).eval()
    _fill(model)
    _settle(model)
    ids = BATCHES[batch]
    x = torch.randn(len(ids), 3, size, size, dtype=torch.float64, requires_grad=True)
    _compare(plain, model, x, ids, alpha=3, tolerance=1e-10)


def test_no_weight_is_built_for_a_sample() -> None:
    """64 samples of a 256 × 256 layer: a weight each would be 64 times the layer's own."""
    model = add_experts(nn.Conv2d(256, 256, 1, bias=False), 4, rank=1)
    x = torch.randn(64, 256, 1, 1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return out

    with Watch():
        model(x, task=torch.arange(64) % 4).sum().backward()
    assert largest <= 4 * 256 * 256


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients() -> None:
    torch.manual_seed(4)
    model = add_experts(Net(), TASKS, rank=2).eval()
    _fill(model)
    ids = torch.tensor(BATCHES["balanced"])
    x = torch.randn(len(ids), 3, 8, 8)
    wanted = model(x, task=ids)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x, task=ids)
    assert got.dtype == torch.bfloat16
    _assert_close(got.float(), wanted, 0.05, "output")
    got.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("view", ["contiguous", "channels-last", "channel-slice", "expanded"])
@pytest.mark.parametrize("kind", ["pointwise", "3x3"])
def test_memory_formats_follow_the_plain_layer(kind: str, view: str) -> None:
    """The output's strides are the plain convolution's, so that a caller's view() still works."""
    make, (channels, *_) = LAYERS[kind]
    x = torch.randn(6, channels, 4, 4)
    if view == "channels-last":
        x = x.to(memory_format=torch.channels_last)
    elif view == "channel-slice":
        x = torch.randn(6, 2 * channels, 4, 4).to(memory_format=torch.channels_last)[:, channels:]
    elif view == "expanded":
        x = x[:1].expand(6, -1, -1, -1)
    plain = make()
    model = add_experts(make(), 3)
    y = model(x, task=torch.tensor([0, 0, 1, 1, 2, 2]))
    assert y.stride() == plain(x).stride()
    y.sum().backward()  # an expanded gradient


@pytest.mark.parametrize(
    ("shape", "tasks", "rows", "form"),
    [
        ((58, 58, 1, 1), 10, 10240, "fused"),  # ShuffleNetV2 at 64 px, N = 160: wide and shallow
        ((232, 232, 1, 1), 10, 640, "low_rank"),
        ((116, 116, 1, 1), 100, 6400, "low_rank"),
        ((64, 64, 3, 3), 10, 40960, "fused"),  # ResNet-18
        ((512, 512, 3, 3), 10, 640, "low_rank"),
        ((1000, 512), 1, 32, "low_rank"),
    ],
)
def test_the_choice_of_form_follows_the_shapes(shape, tasks, rows, form) -> None:
    assert cheaper_form(shape, 4 * shape[-1] ** 2 if len(shape) == 4 else 4, tasks, rows) == form
