"""A whole bundle in milliseconds, without torch: hand-made graph and factors, NumPy reference.

The network has one of each thing that fusion treats differently: a convolution without bias whose
BatchNorm is folded, one with bias and a BatchNorm without affine, a BatchNorm in front that stays
in the graph, and a head whose weight the graph wants transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from lorkd_deploy.bundle.manifest import (
    TEACHER,
    Binding,
    FoldEntry,
    GraphEntry,
    LayerEntry,
    Manifest,
    ParityEntry,
    TaskEntry,
)
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.preprocess import Preprocess, resampling_sha256
from lorkd_deploy.storage import sha256_bytes

SIZE = 16
EPS = {"pre": 1e-5, "bn1": 1e-3, "bn2": 1e-5}
LAYERS = (
    LayerEntry(name="conv1", kind="conv2d", shape=(4, 3, 3, 3)),
    LayerEntry(name="conv2", kind="conv2d", shape=(5, 4, 1, 1)),
)
FOLDS = (
    FoldEntry(conv="conv1", norm="bn1", eps=EPS["bn1"]),
    FoldEntry(conv="conv2", norm="bn2", eps=EPS["bn2"]),
)
BINDINGS = (
    *(Binding(initializer=f"p.{n}", source=f"pre.{n}") for n in ("weight", "bias")),
    *(Binding(initializer=f"p.{n}", source=f"pre.{n}") for n in ("running_mean", "running_var")),
    Binding(initializer="conv1.weight", source="conv1.weight"),
    Binding(initializer="conv1.bias", source="conv1.bias"),
    Binding(initializer="conv2.weight", source="conv2.weight"),
    Binding(initializer="conv2.bias", source="conv2.bias"),
    Binding(initializer="val_1", source="head:weight", transpose=True),
    Binding(initializer="head.bias", source="head:bias"),
)
SHAPES = {"p.weight": (3,), "p.bias": (3,), "p.running_mean": (3,), "p.running_var": (3,)} | {
    "conv1.weight": (4, 3, 3, 3),
    "conv1.bias": (4,),
    "conv2.weight": (5, 4, 1, 1),
    "conv2.bias": (5,),
    "val_1": (5, 2),
    "head.bias": (2,),
}


def template() -> bytes:
    """The tiny graph without its weights."""
    nodes = [
        helper.make_node(
            "BatchNormalization",
            ["input", "p.weight", "p.bias", "p.running_mean", "p.running_var"],
            ["x0"],
            epsilon=EPS["pre"],
        ),
        helper.make_node("Conv", ["x0", "conv1.weight", "conv1.bias"], ["x1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x1"], ["x2"]),
        helper.make_node("Conv", ["x2", "conv2.weight", "conv2.bias"], ["x3"]),
        helper.make_node("Relu", ["x3"], ["x4"]),
        helper.make_node("GlobalAveragePool", ["x4"], ["x5"]),
        helper.make_node("Flatten", ["x5"], ["x6"]),
        helper.make_node("Gemm", ["x6", "val_1", "head.bias"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [TensorProto(name=n, data_type=TensorProto.FLOAT, dims=d) for n, d in SHAPES.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def norm_state(rng: np.random.Generator, name: str, width: int, affine: bool = True) -> Any:
    """Random statistics far from (0, 1), so that a fold that forgets one of them shows."""
    state = {
        f"{name}.running_mean": rng.normal(0, 1, width),
        f"{name}.running_var": rng.uniform(0.2, 3, width),
    }
    if affine:
        state[f"{name}.weight"] = rng.uniform(0.5, 2, width)
        state[f"{name}.bias"] = rng.normal(0, 1, width)
    return {key: value.astype(np.float32) for key, value in state.items()}


def random_parts(
    tasks: Mapping[str, int], *, norm: str = "shared", rank: int = 2, factors: bool = True
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Base and experts with random values; `tasks` maps a name to its number of classes."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    def norms() -> dict[str, Any]:
        return {
            **norm_state(rng, "pre", 3),
            **norm_state(rng, "bn1", 4),
            **norm_state(rng, "bn2", 5, affine=False),
        }

    base = {"conv1.weight": normal(4, 3, 3, 3), "conv2.weight": normal(5, 4, 1, 1)}
    base |= {"conv2.bias": normal(5)} | (norms() if norm == "shared" else {})
    experts = {}
    for task, classes in tasks.items():
        own = {"head:weight": normal(classes, 5), "head:bias": normal(classes)}
        if factors:
            own |= {"conv1.A": normal(rank * 3, 9), "conv1.B": normal(12, rank * 3)}
            own |= {"conv2.A": normal(rank, 4), "conv2.B": normal(5, rank)}
        experts[task] = own | (norms() if norm == "per_task" else {})
    return base, experts


def forward(state: Mapping[str, Any], x: Any) -> Any:
    """The unfused network in float64 NumPy: `(N, 3, S, S)` → `(N, K)`."""

    def batch_norm(x: Any, name: str) -> Any:
        def part(key: str, default: float) -> Any:
            value = state.get(f"{name}.{key}")
            return default if value is None else np.asarray(value, np.float64)[:, None, None]

        scaled = (x - part("running_mean", 0)) / np.sqrt(part("running_var", 1) + EPS[name])
        return scaled * part("weight", 1) + part("bias", 0)

    x = batch_norm(np.asarray(x, np.float64), "pre")
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    x = np.einsum("nchwij,ocij->nohw", windows, state["conv1.weight"])
    x = np.maximum(batch_norm(x, "bn1"), 0)
    x = np.einsum("nchw,oc->nohw", x, state["conv2.weight"][:, :, 0, 0])
    x = np.maximum(batch_norm(x + state["conv2.bias"][:, None, None], "bn2"), 0)
    return x.mean((2, 3)) @ np.asarray(state["head:weight"]).T + state["head:bias"]


def unfused(base: Any, own: Any, scale: float) -> dict[str, Any]:
    """W0 + ΔW written out a second time, independent of the product's code."""
    state = {k: np.asarray(v, np.float64) for k, v in {**base, **own}.items()}
    for name, shape in (("conv1", (4, 3, 3, 3)), ("conv2", (5, 4, 1, 1))):
        if f"{name}.A" in state:
            product = state[f"{name}.B"] @ state[f"{name}.A"]
            state[f"{name}.weight"] = state[f"{name}.weight"] + scale * product.reshape(shape)
    return state


def manifest(**given: Any) -> Manifest:
    """A manifest of what is `given`; all else says as little as one may."""
    preprocess = given.get("preprocess", Preprocess(size=SIZE))
    least = {
        "kind": "experts",
        "name": "tiny",
        "architecture": "tests:tiny",
        "parameters": {},
        "preprocess": preprocess,
        "preprocess_sha256": preprocess.sha256,
        "resampling_sha256": resampling_sha256(preprocess.interpolation),
        "layers": (),
        "norm": "shared",
        "folds": (),
        "graph": GraphEntry(opset=18, input="input", output="output", bindings=()),
        "parity": ParityEntry(inputs=0, seed=0, sha256=""),
        "recipe": {},
        "recipe_sha256": "",
        "versions": {"lorkd-deploy": "0.1.0"},
        "created": "2025-01-01T00:00:00Z",
    }
    return Manifest.model_validate(least | given)


def entry(name: str, count: int, **given: Any) -> TaskEntry:
    """A task of `count` classes in the department `ward`, and what else is `given` of it."""
    least = {
        "department": "ward",
        "classes": tuple(f"class{k}" for k in range(count)),
        "kind": "multiclass",
        "data": {},
    }
    return TaskEntry(name=name, **(least | given))


def make_bundle(
    path: Path,
    tasks: Mapping[str, int] | None = None,
    *,
    kind: str = "experts",
    norm: str = "shared",
    inputs: int = 8,
    parts: tuple[Any, Any] | None = None,
    department: Sequence[str] = ("ward",),
) -> Path:
    """Write a bundle of the tiny network with α ≠ r, and its true logits; gives `path`."""
    tasks = {"lung": 2, "eye": 3} if tasks is None else tasks
    rank, alpha = 2, 5.0
    factors = kind == "experts"
    base, experts = parts or random_parts(tasks, norm=norm, rank=rank, factors=factors)
    preprocess = Preprocess(size=SIZE)
    pictures = parity_inputs(inputs, SIZE, 3)
    x = preprocess.normalise(pictures)
    logits = {t: forward(unfused(base, own, alpha / rank), x) for t, own in experts.items()}
    if kind == "teacher":
        logits = {TEACHER: np.concatenate(list(logits.values()), 1)}
    described = manifest(
        kind=kind,
        parameters={"backbone": 140},
        tasks=[
            entry(
                task,
                classes,
                department=department[index % len(department)],
                data={"source": "phantom"},
                rank=rank if factors else None,
                alpha=alpha if factors else None,
            )
            for index, (task, classes) in enumerate(tasks.items())
        ],
        layers=LAYERS if factors else (),
        folds=FOLDS,
        graph=GraphEntry(opset=18, input="input", output="output", bindings=BINDINGS),
        parity=ParityEntry(inputs=inputs, seed=3, sha256=sha256_bytes(pictures.tobytes())),
        recipe={"name": "tiny"},
        recipe_sha256="0" * 64,
        norm=norm,
    )
    contents = Contents(
        base=base,
        experts=experts,
        logits={e: {"inputs": v.astype(np.float32)} for e, v in logits.items()},
        template=template(),
    )
    write_bundle(path, described, contents)
    return path


def checked(data: bytes) -> onnx.ModelProto:
    """Parse a model and run the checker on it."""
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return model
