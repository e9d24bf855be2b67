"""A model that takes pictures as they are: normalisation in front of it, probabilities behind it.

    image uint8 (N, S, S, 3) → Cast, Mul, Sub, Transpose → the network → Softmax or Sigmoid

The picture is RGB, upright and at the network's size already. Up to the network it is
`Preprocess.normalise` operation by operation, in float32 whatever the engine's precision, so that
the network gets the same bits. TensorRT wants a Cast right behind a uint8 input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorkd_deploy.bundle.manifest import TaskEntry, columns_of
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import IMAGE, PROBABILITIES

if TYPE_CHECKING:
    import onnx

_OWN = "lorkd.raw"  # begins the names of what is added


def raw_model(model: bytes, bundle: Bundle, engine: str) -> bytes:
    """`model`, which maps network inputs to logits, as uint8 `image` `(N, S, S, 3)` → float32
    `probabilities` `(N, K)`, the softmax of a multiclass task and the sigmoid of a multi-label one.

    Further outputs stay as they are. `model` may be in any precision whose inputs and outputs are
    float32; `engine` says whose tasks its columns are.
    """
    import onnx

    parsed = onnx.ModelProto.FromString(model)
    _put_in_front(parsed.graph, bundle.manifest.preprocess)
    _put_behind(parsed.graph, bundle.engine(engine))
    parsed.metadata_props.add(key=_OWN, value="true")
    onnx.checker.check_model(parsed, full_check=True)
    data: bytes = parsed.SerializeToString(deterministic=True)
    return data


def _put_in_front(graph: onnx.GraphProto, preprocess: Preprocess) -> None:
    from onnx import TensorProto, helper, numpy_helper

    given = graph.input[0]
    number = given.type.tensor_type.shape.dim[0].dim_param or None
    shape = [number, preprocess.size, preprocess.size, 3]
    values = [IMAGE, f"{_OWN}.float", f"{_OWN}.scaled", f"{_OWN}.normal"]
    constants = dict(zip(("scale", "shift"), preprocess.scale_and_shift, strict=True))
    nodes = (
        helper.make_node("Cast", values[:1], values[1:2], to=TensorProto.FLOAT),
        helper.make_node("Mul", [values[1], f"{_OWN}.scale"], values[2:3]),
        helper.make_node("Sub", [values[2], f"{_OWN}.shift"], values[3:]),
        helper.make_node("Transpose", values[3:], [given.name], perm=[0, 3, 1, 2]),
    )
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    graph.initializer.extend(
        numpy_helper.from_array(value, f"{_OWN}.{name}") for name, value in constants.items()
    )
    given.CopyFrom(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape))


def _put_behind(graph: onnx.GraphProto, tasks: Sequence[TaskEntry]) -> None:
    """Each task's columns by its own kind; they come together again where there are several."""
    from onnx import TensorProto, helper, numpy_helper

    given = graph.output[0]
    dims = given.type.tensor_type.shape.dim
    alone = len(tasks) == 1
    parts = [f"{_OWN}.{task.name}" for task in tasks]
    logits = [given.name] if alone else [f"{part}.logits" for part in parts]
    found = [PROBABILITIES] if alone else parts
    if not alone:
        widths = np.array([c.stop - c.start for _, c in columns_of(tasks)], np.int64)
        graph.initializer.append(numpy_helper.from_array(widths, f"{_OWN}.widths"))
        split = helper.make_node("Split", [given.name, f"{_OWN}.widths"], logits, axis=1)
        graph.node.append(split)
    for task, before, after in zip(tasks, logits, found, strict=True):
        if task.kind == "multilabel":
            graph.node.append(helper.make_node("Sigmoid", [before], [after]))
        else:
            graph.node.append(helper.make_node("Softmax", [before], [after], axis=1))
    if not alone:
        graph.node.append(helper.make_node("Concat", parts, [PROBABILITIES], axis=1))
    shape = [dims[0].dim_param or None, dims[1].dim_value]
    given.CopyFrom(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, shape))
