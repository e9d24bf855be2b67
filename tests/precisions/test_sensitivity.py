"""Which layers int8 costs most, and which stay in float32: by NNCF, on a real network."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest

from lorkd_deploy.precisions.accuracy_control import in_int8
from lorkd_deploy.precisions.passes import int8
from lorkd_deploy.precisions.sensitivity import Labelled, Sensitivity, measured

pytestmark = pytest.mark.skipif(
    not (find_spec("nncf") and find_spec("onnxruntime")),
    reason="int8 needs NNCF and ONNX Runtime, not installed here",
)
FLOAT = onnx.TensorProto.FLOAT
CLASSES = 4


@pytest.fixture(scope="module")
def network() -> tuple[bytes, Any]:
    """Three convolutions and inputs float32 (48, 3, 12, 12).

    What the second is given differs by channel, from 1 to 1000, and its weights make it even: of
    one scale for all, int8 keeps only the largest. The two others have nothing of the kind.
    """
    rng = np.random.default_rng(4)
    shapes = {"first": (8, 3, 3, 3), "uneven": (8, 8, 1, 1), "last": (8, 8, 3, 3)}
    weights = {f"{n}.weight": rng.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    weights["head.weight"] = rng.normal(0, 1, (8, CLASSES)).astype(np.float32)
    weights["head.bias"] = np.zeros(CLASSES, np.float32)
    scales = np.logspace(0, 3, 8, dtype=np.float32)
    weights["first.weight"] *= scales[:, None, None, None]
    weights["uneven.weight"] /= scales[None, :, None, None]
    nodes = [
        onnx.helper.make_node("Conv", ["input", "first.weight"], ["x1"], "conv_1", pads=[1] * 4),
        onnx.helper.make_node("Relu", ["x1"], ["x2"], "relu_1"),
        onnx.helper.make_node("Conv", ["x2", "uneven.weight"], ["x3"], "conv_2"),
        onnx.helper.make_node("Relu", ["x3"], ["x4"], "relu_2"),
        onnx.helper.make_node("Conv", ["x4", "last.weight"], ["x5"], "conv_3", pads=[1] * 4),
        onnx.helper.make_node("Relu", ["x5"], ["x6"], "relu_3"),
        onnx.helper.make_node("GlobalAveragePool", ["x6"], ["x7"], "pool"),
        onnx.helper.make_node("Flatten", ["x7"], ["x8"], "flatten"),
        onnx.helper.make_node("Gemm", ["x8", "head.weight", "head.bias"], ["output"], "head"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "uneven",
        [onnx.helper.make_tensor_value_info("input", FLOAT, ["batch", 3, 12, 12])],
        [onnx.helper.make_tensor_value_info("output", FLOAT, ["batch", CLASSES])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    tints = rng.normal(size=(48, 3, 1, 1))
    images = (tints + 0.3 * rng.normal(size=(48, 3, 12, 12))).astype(np.float32)
    bias = -logits(model.SerializeToString(), images).mean(axis=0)  # so that no class has it all
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(bias, "head.bias"))
    return model.SerializeToString(), images


def logits(model: bytes, images: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


@pytest.fixture(scope="module")
def found(network: tuple[bytes, Any]) -> Sensitivity:
    """The network's own answers are its labels: in float32 it is always right."""
    model, images = network
    labels = logits(model, images).argmax(axis=1)
    labelled = Labelled("t", "multiclass", slice(0, CLASSES), images, labels)
    return measured(model, lambda: images, [labelled], form="tensor", max_drop=5)


def test_the_layers_that_int8_hurts_stay_in_float32(found: Sensitivity) -> None:
    assert set(found.layers) == {"first", "uneven", "last", "head"}
    assert (found.images, found.fp32) == (48, {"t": 1.0})
    assert found.int8["t"] < 0.8
    assert found.mixed["t"] >= 0.95
    worst = found.groups[0]
    assert (worst.layers, worst.left, worst.images) == (("uneven",), True, 48)
    assert worst.gain > 10
    assert [group.gain for group in found.groups] == sorted(
        (group.gain for group in found.groups), reverse=True
    )
    assert {name for group in found.groups for name in group.layers} >= set(found.layers)
    assert "uneven" in found.left and {"first", "last"}.isdisjoint(found.left)


def test_the_model_has_these_in_float32_and_the_others_in_int8(
    network: tuple[bytes, Any], found: Sensitivity
) -> None:
    model, images = network
    mixed = int8(model, lambda: images, form="tensor", left=found.nodes_left)
    coarse = in_int8(onnx.load_from_string(mixed))
    assert "conv_2" in found.nodes_left and coarse.isdisjoint(found.nodes_left)
    assert {"conv_1", "conv_3"} <= coarse
    right = logits(mixed, images).argmax(axis=1) == logits(model, images).argmax(axis=1)
    assert right.mean() == pytest.approx(found.mixed["t"], abs=0.03)
