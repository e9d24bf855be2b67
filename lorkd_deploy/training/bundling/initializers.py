"""Weights in and out of an exported ONNX graph: which initialiser is which tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.manifest import Binding
from lorkd_deploy.errors import ModelError
from lorkd_deploy.storage import sha256_bytes

if TYPE_CHECKING:
    import onnx
    from torch.onnx import ONNXProgram

_RESHAPES = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")


def take_weights(
    exported: ONNXProgram, sources: Mapping[str, Tensor]
) -> tuple[onnx.ModelProto, dict[str, F32]]:
    """Optimise the graph without touching its weights; gives it and its weights by initialiser.

    `sources` are the values of the graph's float tensors, no two alike. For the optimiser the
    weights are inputs of the graph, so nothing computed from one can be folded into a constant
    that no other expert could replace. Afterwards only what moves elements without changing them
    (a transpose, a reshape) is done ahead of time. The initialisers of the weights are empty in
    the result: shape and type only.
    """
    graph = exported.model.graph
    free = len(graph.inputs)
    for name in sources:
        value = graph.initializers.pop(name, None)
        if value is not None:
            value.const_value = None
            graph.inputs.append(value)
    exported.optimize()
    proto: onnx.ModelProto = exported.model_proto
    known = _known({name: tensor.numpy() for name, tensor in sources.items()})
    weights = {v.name: sources[v.name].numpy() for v in proto.graph.input[free:]}
    del proto.graph.input[free:]
    weights = _moved(proto.graph, weights, known)
    used = set(_reads(proto.graph))
    for constant in [i for i in proto.graph.initializer if i.name not in used]:
        proto.graph.initializer.remove(constant)  # the shape of a reshape that is done
    for name, array in weights.items():
        empty = proto.graph.initializer.add(name=name, dims=array.shape)
        empty.data_type = empty.FLOAT
    return proto, weights


def _moved(
    graph: onnx.GraphProto, weights: Mapping[str, F32], known: Collection[str]
) -> dict[str, F32]:
    """Do every transpose and reshape of a weight now, where it is the weight's only use.

    A permutation that a binding can't express stays a node of the graph.
    """
    uses = Counter(_reads(graph))
    shapes = {value.name: _static_shape(value) for value in graph.value_info}
    moved = dict(weights)
    done = set()
    for node in graph.node:
        name = node.input[0] if node.input else ""
        if name not in moved or uses[name] != 1:
            continue
        shape = shapes.get(node.output[0])
        if node.op_type == "Transpose":
            axes = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            value = moved[name].transpose(axes)
        elif node.op_type in _RESHAPES and shape is not None:
            value = moved[name].reshape(shape)
        else:
            continue
        if _key(value) in known:
            del moved[name]
            moved[node.output[0]] = value
            done.add(node.output[0])
    kept = [node for node in graph.node if node.output[0] not in done]
    del graph.node[:]
    graph.node.extend(kept)
    return {name: value for name, value in moved.items() if uses[name]}


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a node reads, in branches too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _reads(attribute.g)


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    dims = value.type.tensor_type.shape.dim
    fixed = all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if fixed else None


def bind(weights: Mapping[str, F32], sources: Mapping[str, F32]) -> tuple[Binding, ...]:
    """Match every initialiser with the one source that has its values, as it is or transposed.

    Raises `ModelError` naming the tensors for which there is no one-to-one match.
    """
    known = _known(sources)
    bindings = []
    for name, value in weights.items():
        source, transpose = known.get(_key(value), ("", False))
        if not source:
            raise ModelError(f"no tensor of the network has the values of initialiser {name}")
        shape = sources[source].shape[::-1] if transpose else sources[source].shape
        bindings.append(
            Binding(
                initializer=name,
                source=source,
                transpose=transpose,
                shape=None if shape == value.shape else value.shape,
            )
        )
    times = Counter(binding.source for binding in bindings)
    if wrong := [name for name in sources if times[name] != 1]:
        raise ModelError(
            f"{len(wrong)} tensors have no place of their own in the graph: "
            + ", ".join(wrong[:5])
            + (", …" if len(wrong) > 5 else ""),
            fix="let each tensor be read as it is, once, or not at all, by the network's forward",
        )
    return tuple(bindings)


def _known(sources: Mapping[str, F32]) -> dict[str, tuple[str, bool]]:
    """Which source has these values, and whether they are its transpose."""
    known = {}
    for transpose in (True, False):  # a vector is its own transpose: as it is comes last and wins
        for name, value in sources.items():
            known[_key(value.T if transpose else value)] = (name, transpose)
    return known


def _key(value: F32) -> str:
    return sha256_bytes(np.ascontiguousarray(value).tobytes())


def stripped(model: onnx.ModelProto) -> bytes:
    """The graph's bytes without source paths, stack traces and whatever else isn't computed."""
    graph = model.graph
    _forget(model)
    _forget(graph)
    graph.name = "lorkd"
    model.producer_name = model.producer_version = ""  # `onnx_model` signs what it fills
    del graph.value_info[:]
    for index, node in enumerate(graph.node):
        _forget(node)
        node.name = f"{node.op_type}_{index}"
    for value in (*graph.input, *graph.output, *graph.initializer):
        _forget(value)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _forget(part: Any) -> None:
    part.ClearField("doc_string")
    part.ClearField("metadata_props")
