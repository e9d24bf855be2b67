from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests import tiny_bundle
from tests.tiny_bundle import checked

torch = pytest.importorskip("torch", reason="the template is exported by torch")
pytest.importorskip("onnxscript", reason="torch's exporter needs it")
ort = pytest.importorskip("onnxruntime", reason="runs the filled graphs")

from torch import nn  # noqa: E402

from lorkd_deploy.bundle import size  # noqa: E402
from lorkd_deploy.bundle.manifest import FoldEntry, LayerEntry  # noqa: E402
from lorkd_deploy.bundle.read import Bundle, load_bundle  # noqa: E402
from lorkd_deploy.bundle.write import Contents, write_bundle  # noqa: E402
from lorkd_deploy.deploy.graphs.graph import onnx_model  # noqa: E402
from lorkd_deploy.errors import ModelError  # noqa: E402
from lorkd_deploy.lowrank.delta import delta_weight  # noqa: E402
from lorkd_deploy.models import build  # noqa: E402
from lorkd_deploy.preprocess import Preprocess  # noqa: E402
from lorkd_deploy.training.bundling import trial  # noqa: E402
from lorkd_deploy.training.bundling.graph_template import Template, graph_template  # noqa: E402

SIZE, RANK, ALPHA = 32, 2, 3.0
TASKS = {"lung": 2, "eye": 7}


class Mixed(nn.Module):
    """One of everything that a template must treat differently."""

    table: Any
    fixed: Any

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import BatchNormAct2d

        self.pre = nn.BatchNorm2d(3)  # not behind a convolution: stays
        self.conv1 = nn.Conv2d(3, 8, 3, padding="same")  # with bias
        self.norm1 = nn.BatchNorm2d(8, affine=False, eps=1e-2)
        self.conv2 = nn.Conv2d(8, 8, (1, 3), stride=2, groups=2, bias=False)
        self.norm2 = BatchNormAct2d(8)  # its activation must survive
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.norm3 = nn.BatchNorm2d(8)  # conv3 is read twice: stays
        self.group = nn.GroupNorm(2, 8)
        self.shared = nn.Conv2d(8, 8, 1, bias=False)  # called twice: nothing is folded into it
        self.norm4, self.norm5 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 6)
        self.norm6 = nn.BatchNorm1d(6)  # the exporter's own optimiser would fold this one
        self.layer = nn.LayerNorm(6)
        self.bias_table = nn.Parameter(torch.zeros(4, 6))
        self.register_buffer("table", torch.tensor([2, 0, 1, 2, 3, 1]))
        self.register_buffer("fixed", torch.linspace(-1, 1, 6), persistent=False)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm1(self.conv1(self.pre(x))))
        x = self.norm2(self.conv2(x))
        x = self.conv3(x)
        x = self.group(self.norm3(x) + x)
        x = self.norm4(self.shared(x)) + self.norm5(self.shared(x)).sigmoid()
        x = self.norm6(self.hidden(x.mean((2, 3))))
        # Indexing a weight by a table is a computation that depends on the expert.
        return self.layer(x) * self.fixed + self.bias_table[self.table].mean(0)


def timm_net(name: str, **options: Any) -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(name, num_classes=0, img_size=SIZE, **options)
    return net


NETS = {
    "mixed": Mixed,
    "shufflenet": functools.partial(build, "torchvision:shufflenet_v2_x1_0"),
    "mobilenet": functools.partial(build, "torchvision:mobilenet_v3_small"),
    "vit": functools.partial(timm_net, "vit_tiny_patch16_224", depth=2),
    "swin": functools.partial(
        timm_net, "swin_tiny_patch4_window7_224", embed_dim=24, depths=(2, 1), num_heads=(2, 2)
    ),
}


def randomise(net: nn.Module, seed: int) -> None:
    """Weights and norm statistics far from their initial values, outputs of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.3 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(1.2 * noise / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.5 * noise)


class Case:
    """A network, its experts made by hand, and the bundle of both."""

    def __init__(self, name: str, folder: Path, export: Callable[..., Template]) -> None:
        self.net = NETS[name]().eval()
        randomise(self.net, 1)
        with torch.no_grad():
            features = self.net(torch.zeros(2, 3, SIZE, SIZE)).shape[1]
        self.layers = tuple(_layers(self.net))
        self.template = export(self.net, nn.Linear(features, 3), size=SIZE, opset=18)
        rng = np.random.default_rng(5)
        self.experts = {
            task: _factors(rng, self.layers)
            | {"head:weight": rng.normal(size=(k, features)) / 4, "head:bias": rng.normal(size=k)}
            for task, k in TASKS.items()
        }
        self.bundle = self._bundle(folder / name)

    def _bundle(self, folder: Path) -> Bundle:
        state = {k: v.numpy() for k, v in self.net.state_dict().items() if "num_batches" not in k}
        described = tiny_bundle.manifest(
            preprocess=Preprocess(size=SIZE),
            tasks=[tiny_bundle.entry(t, k, rank=RANK, alpha=ALPHA) for t, k in TASKS.items()],
            layers=self.layers,
            folds=self.template.folds,
            graph=self.template.graph,
        )
        contents = Contents(
            base=state,
            experts={
                t: {k: v.astype(np.float32) for k, v in e.items()} for t, e in self.experts.items()
            },
            logits={task: {} for task in TASKS},
            template=self.template.onnx,
        )
        write_bundle(folder, described, contents)
        return load_bundle(folder)

    def unfused(self, task: str, x: Any) -> Any:
        """The torch network of one task, nothing folded, float64."""
        import copy

        own = {k: torch.from_numpy(v) for k, v in self.experts[task].items()}
        net = copy.deepcopy(self.net).double()
        for layer in self.layers:
            weight = net.get_parameter(f"{layer.name}.weight").data
            weight += delta_weight(
                own[f"{layer.name}.A"], own[f"{layer.name}.B"], ALPHA / RANK, layer.shape
            )
        with torch.no_grad():
            return (net(x.double()) @ own["head:weight"].T + own["head:bias"]).numpy()


def _layers(net: nn.Module) -> Any:
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d) and part.groups == 1:
            yield LayerEntry(name=name, kind="conv2d", shape=tuple(part.weight.shape))
        elif isinstance(part, nn.Linear):
            yield LayerEntry(name=name, kind="linear", shape=tuple(part.weight.shape))


def _factors(rng: np.random.Generator, layers: Any) -> dict[str, Any]:
    factors = {}
    for layer in layers:
        out, into, height, width = (*layer.shape, 1, 1)[:4]
        size = 0.5 / (into * height * width) ** 0.5
        factors[f"{layer.name}.A"] = rng.normal(size=(RANK * height, into * width))
        factors[f"{layer.name}.B"] = rng.normal(size=(out * height, RANK * height)) * size
    return factors


@pytest.fixture(scope="module")
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    exported_once: Callable[..., Template],
) -> Case:
    """The larger networks are exported with `networks/test_student_networks.py`."""
    return Case(request.param, tmp_path_factory.mktemp("bundles"), exported_once)


every_net = pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("mobilenet", "swin"))) for n in NETS],
    indirect=True,
)
mixed_only = pytest.mark.parametrize("case", ["mixed"], indirect=True)


@every_net
def test_every_expert_in_the_one_graph_equals_its_unfused_network(case: Case) -> None:
    x = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    for task, classes in TASKS.items():
        session = ort.InferenceSession(onnx_model(case.bundle, task))
        logits = session.run(None, {"input": x.numpy()})[0]
        expected = case.unfused(task, x)
        assert logits.shape == (5, classes)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
        one = session.run(None, {"input": x[:1].numpy()})[0]
        np.testing.assert_allclose(one, logits[:1], atol=1e-5 * np.abs(expected).max())


@every_net
def test_each_float_tensor_has_one_place_and_the_template_no_weights(case: Case) -> None:
    state = {k for k, v in case.net.state_dict().items() if v.is_floating_point()}
    for fold in case.template.folds:
        state -= {
            f"{fold.norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")
        }
        state.add(f"{fold.conv}.bias")
    bindings = case.template.graph.bindings
    assert sorted(b.source for b in bindings) == sorted(state | {"head:weight", "head:bias"})
    initializers = onnx.load_from_string(case.template.onnx).graph.initializer
    assert len({i.name for i in initializers}) == len(initializers)
    empty = {i.name for i in initializers if not i.raw_data}
    assert {b.initializer for b in bindings} == empty


@every_net
def test_no_path_no_trace_and_a_valid_graph(case: Case) -> None:
    data = onnx_model(case.bundle, "eye")
    model = checked(data)
    for secret in (b"stack", b"File ", b".py", b"torch.", str(Path.home()).encode() + b"/"):
        assert secret not in case.template.onnx
    assert not model.graph.value_info
    read = {name for node in model.graph.node for name in node.input}
    assert {i.name for i in model.graph.initializer} <= read
    assert not model.functions
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


@mixed_only
def test_exactly_the_norms_alone_behind_a_convolution_are_folded(case: Case) -> None:
    assert case.template.folds == (
        FoldEntry(conv="conv1", norm="norm1", eps=1e-2),
        FoldEntry(conv="conv2", norm="norm2", eps=1e-5),
    )


@mixed_only
def test_the_network_stays_as_it_was(case: Case) -> None:
    again = Mixed()
    randomise(again, 1)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in case.net.state_dict().items())


def test_a_network_in_training_stays_so() -> None:
    net, head = OneLayer(), nn.Linear(4, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    weight = head.weight.clone()
    graph_template(net, head, 8)
    assert net.training
    assert torch.equal(weight, head.weight)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


SCRIPT = """
import hashlib, sys, torch
from tests.training.bundling.test_graph_template import SIZE, Mixed, nn
from lorkd_deploy.training.bundling.graph_template import graph_template
torch.manual_seed(int(sys.argv[1]))
made = graph_template(Mixed(), nn.Linear(6, 3), SIZE)
print(hashlib.sha256(made.onnx + made.graph.model_dump_json().encode()).hexdigest())
"""


@mixed_only
def test_fresh_processes_give_the_same_bytes(case: Case) -> None:
    import hashlib

    environment = os.environ | {"PYTHONHASHSEED": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, "3"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    here = case.template.onnx + case.template.graph.model_dump_json().encode()
    assert ran.stdout.split()[-1] == hashlib.sha256(here).hexdigest()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Any) -> Any:
        return self.conv(x).mean((2, 3))


def test_what_no_answer_depends_on_is_left_out_and_listed() -> None:
    net = Small()
    net.forgotten = nn.Linear(3, 3)
    net.register_buffer("pixel_mean", torch.zeros(3))
    net.again = net.conv
    net.head = nn.Linear(3, 3)  # of the names that the task's head has in the graph
    template = graph_template(net, nn.Linear(4, 2), 16)
    assert [b.source for b in template.graph.bindings if b.source[:4] != "head"] == [
        "conv.weight",
        "conv.bias",
    ]
    left = {"again", "forgotten", "head"}
    unused = {f"{name}.{part}" for name in left for part in ("weight", "bias")} | {"pixel_mean"}
    assert set(template.graph.unused) == unused


class Branching(Small):
    def forward(self, x: Any) -> Any:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Fixed(Small):
    def forward(self, x: Any) -> Any:
        return super().forward(x.reshape(2, 3, 16, 16))


class OfNumPy(Small):
    def forward(self, x: Any) -> Any:
        return super().forward(torch.from_numpy(x.numpy()))


class LargestPool(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(3), nn.Flatten())


@pytest.mark.parametrize(
    ("kind", "says", "where"),
    [
        (Branching, "decides by the values of the data", "part (Branching), test_graph_template"),
        (Fixed, "takes the batch's size for a fixed number", "Outer"),
        (OfNumPy, "torch can't export this network", "part (OfNumPy), test_graph_template.py line"),
        (LargestPool, "nothing for torch's adaptive_max_pool2d", "part.1 (AdaptiveMaxPool2d)"),
    ],
)
def test_what_can_not_be_exported_is_named(
    kind: type[nn.Module], says: str, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = kind()

        def forward(self, x: Any) -> Any:
            return self.part(x)

    with pytest.raises(ModelError, match=says) as caught:
        graph_template(Outer(), nn.Linear(36 if kind is LargestPool else 4, 2), 16)
    assert str(caught.value.where).startswith(where)
    assert "\x1b" not in str(caught.value), "no colour codes"
    assert capfd.readouterr() == ("", ""), "torch's graphs are not shown"


class OneLayer(nn.Module):
    """A convolution with its norm, so that an export takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


def test_the_opset_is_the_recipes() -> None:
    opset = 21
    net, head = OneLayer().eval(), nn.Linear(4, 2)
    randomise(net, 3)
    template = graph_template(net, head, 8, opset)
    model = onnx.load_from_string(template.onnx)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert template.graph.opset == opset
    weights = {b.initializer: b.source for b in template.graph.bindings}
    gain = net.norm.weight / torch.sqrt(net.norm.running_var + net.norm.eps)  # type: ignore[operator]
    folded = {
        "conv.weight": net.conv.weight * gain[:, None, None, None],
        "conv.bias": net.norm.bias - net.norm.running_mean * gain,  # type: ignore[operator]
        "head:weight": head.weight,
        "head:bias": head.bias,
    }
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            value = folded[weights[initializer.name]].detach().numpy()
            shape = tuple(initializer.dims)
            value = value if value.shape == shape else value.T
            initializer.raw_data = np.ascontiguousarray(value, np.float32).tobytes()
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {template.graph.input: x})
    with torch.no_grad():
        expected = head(net(torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_above_what_onnx_holds_a_student_is_refused_and_a_teacher_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = SimpleNamespace(
        preprocess=SimpleNamespace(size=8),
        recipe=SimpleNamespace(
            export=SimpleNamespace(opset=18), safety=SimpleNamespace(explain=False)
        ),
    )
    large, head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), nn.Linear(4, 2)
    monkeypatch.setattr(size, "LIMIT", 4 * 192 * 4)
    with pytest.raises(ModelError, match="an ONNX file holds 2 at most"):
        trial.tried(setup, large, head)
    trial.tried(setup, large, head, deployed=False)
    assert "it can be trained and learnt from" in caplog.text
