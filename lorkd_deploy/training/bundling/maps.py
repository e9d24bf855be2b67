"""The class activation map as a second output of the exported graph, with nothing trained for it.

Behind the last global average pooling a classifier is a few layers on one vector. The graph gets
their Jacobian, which for a linear head alone is its weight, times the feature map: Grad-CAM,
exactly, in operators that every runtime has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.errors import ModelError
from lorkd_deploy.runtime import MAPS
from lorkd_deploy.training.networks.explained import NO_MAPS

if TYPE_CHECKING:
    import onnx

_SAME = ("Reshape", "Flatten", "Squeeze", "Identity", "Dropout")  # of a vector: still that vector
_SPACE = ({2, 3}, {-1, -2})


def add_maps(model: onnx.ModelProto) -> None:
    """Give a classifier's graph, in place, the output `MAPS`: float32 `(N, K, h, w)`.

    Raises `ModelError` for a graph whose logits are not a few dense layers, ReLUs and hard swishes
    behind a global average pooling.
    """
    _Tail(model).add()


class _Tail:
    """A graph from its logits back to the pooling, and the nodes that are added."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.onnx = onnx
        self.graph = model.graph
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.known = {value.name: list(value.dims) for value in self.graph.initializer}
        shaped = onnx.shape_inference.infer_shapes(model).graph
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*shaped.value_info, *shaped.output)
        }

    def add(self) -> None:
        name, jacobian = self.graph.output[0].name, ""  # d logits / d name: (K, M) or (N, K, M)
        while not self._pools_all(self.makers.get(name)):
            node = self.makers.get(name)
            if node is None:
                raise _none("it has no global average pooling")
            if node.op_type in _LAYERS:
                jacobian = _LAYERS[node.op_type](self, node, jacobian)
            elif node.op_type not in _SAME:
                raise _none(f"{node.op_type} stands between its last feature map and its answer")
            name = next(given for given in node.input if given not in self.known)
        self._product(jacobian, self.makers[name].input[0])

    def dense(self, node: onnx.NodeProto, jacobian: str) -> str:
        """Behind the product with a matrix, or a convolution of one pixel."""
        weight = node.input[1]
        self._require_weight(node, weight)
        dims = self.known[weight]
        if node.op_type == "Conv":
            if dims[2:] != [1, 1] or self._attribute(node, "group", 1) != 1:
                raise _none("it has a convolution behind its pooling")
            weight = self._node("Reshape", weight, self._constant(np.array(dims[:2])))
        elif node.op_type == "MatMul" or not self._attribute(node, "transB", 0):
            weight = self._node("Transpose", weight, perm=[1, 0])
        return self._node("MatMul", jacobian, weight) if jacobian else weight

    def bias(self, node: onnx.NodeProto, jacobian: str) -> str:
        self._require_weight(node, *node.input)
        return jacobian

    def activation(self, node: onnx.NodeProto, jacobian: str) -> str:
        """Times the derivative at what the activation is given, `(N, 1, M)`."""
        given = self._node("Flatten", node.input[0], axis=1)
        zero, one = (self._constant(np.float32(value)) for value in (0, 1))
        if node.op_type == "Relu":
            slope = self._node("Where", self._node("Greater", given, zero), one, zero)
        else:  # z · clip(z / 6 + 1/2, 0, 1)
            third, half = (self._constant(np.float32(value)) for value in (1 / 3, 1 / 2))
            inner = self._node("Add", self._node("Mul", given, third), half)
            above = self._node("Greater", given, self._constant(np.float32(3)))
            below = self._node("Less", given, self._constant(np.float32(-3)))
            slope = self._node("Where", below, zero, self._node("Where", above, one, inner))
        return self._node(
            "Mul", jacobian, self._node("Unsqueeze", slope, self._constant(np.array([1])))
        )

    def _product(self, jacobian: str, features: str) -> None:
        """The output itself: every place's share of each logit."""
        _, channels, height, width = self.shapes[features]
        if height * width == 1:
            raise _none("its last feature map is a single place at this image size")
        flat = self._constant(np.array([0, channels, height * width]))
        shares = self._node("MatMul", jacobian, self._node("Reshape", features, flat))
        scaled = self._node("Mul", shares, self._constant(np.float32(1 / (height * width))))
        self._node("Reshape", scaled, self._constant(np.array([0, -1, height, width])), output=MAPS)
        logits = self.graph.output[0].type.tensor_type.shape.dim
        batch, classes = logits[0].dim_param, logits[1].dim_value
        value = self.onnx.helper.make_tensor_value_info(
            MAPS, self.onnx.TensorProto.FLOAT, [batch, classes, height, width]
        )
        self.graph.output.append(value)

    def _pools_all(self, node: onnx.NodeProto | None) -> bool:
        """Whether it takes the mean over all places of a feature map."""
        if node is None or node.op_type not in ("GlobalAveragePool", "ReduceMean"):
            return False
        if node.op_type == "GlobalAveragePool":
            return True
        axes = self._attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            axes = self._integers(node.input[1])
        return axes is not None and set(axes) in _SPACE

    def _integers(self, name: str) -> list[int]:
        """The values of a constant."""
        values = {value.name: value for value in self.graph.initializer}
        if name not in values:
            values[name] = next(a.t for a in self.makers[name].attribute if a.name == "value")
        return [int(value) for value in self.onnx.numpy_helper.to_array(values[name]).ravel()]

    def _require_weight(self, node: onnx.NodeProto, *names: str) -> None:
        if not any(name in self.known for name in names):
            raise _none(f"{node.op_type} behind its pooling has no fixed weight")

    def _attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        for attribute in node.attribute:
            if attribute.name == name:
                return self.onnx.helper.get_attribute_value(attribute)
        return default

    def _constant(self, value: np.generic | npt.NDArray[Any]) -> str:
        name = f"{MAPS}.constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, kind: str, *given: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{MAPS}.{len(self.graph.node)}"
        self.graph.node.append(self.onnx.helper.make_node(kind, given, [name], **attributes))
        return name


_LAYERS: dict[str, Callable[[_Tail, onnx.NodeProto, str], str]] = {
    "Gemm": _Tail.dense,
    "MatMul": _Tail.dense,
    "Conv": _Tail.dense,
    "Add": _Tail.bias,
    "Relu": _Tail.activation,
    "HardSwish": _Tail.activation,
}


def _none(why: str) -> ModelError:
    return ModelError(f"the network has no class activation map: {why}", fix=NO_MAPS)
