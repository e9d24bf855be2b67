"""One graph for every department's task: W0 in it, and what a task has of its own beside it.

A task's own tensors become inputs of the graph with defaults (ONNX's overridable initialisers),
behind the network's own input. A convolution whose update has rank r, or a product with a weight,
keeps W0 and gets a low-rank branch of two thin ones, `WEIGHT.A` and `WEIGHT.B`; other layers with
experts, and the head, are inputs whole. The `onnx` target divides such a model into the base,
which is the same bytes for every task of a bundle, and the task's adapter.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.manifest import FACTORS, HEAD_TENSORS, TEACHER, LayerEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import UsageError
from lorkd_deploy.runtime import MAPS, OUTPUT
from lorkd_deploy.storage import link_or_copy, sha256_file

if TYPE_CHECKING:
    import onnx


OF_CLASSES = (OUTPUT, MAPS)  # outputs with an axis of classes


class _Own(NamedTuple):
    """A tensor of a task's own, and its axis whose length differs from task to task."""

    value: F32
    free: int | None = None


def require_adapters(bundle: Bundle) -> None:
    """Raise `UsageError` for a bundle whose tasks differ in more than factors and heads."""
    if bundle.manifest.kind == TEACHER:
        raise UsageError("the teacher is one network for all tasks and has no adapters")
    if bundle.manifest.norm == "per_task":
        raise UsageError(
            "adapters stand on one W0, and here each task's own norms are folded into it",
            where=bundle.path,
            fix="export without adapters, or decompose again: norms are shared now",
        )


def adapted(bundle: Bundle, engine: str, fused: bytes) -> bytes:
    """The task's model `fused` with all that is its own as inputs that have defaults.

    It gives what `fused` gives but for rounding. Raises what `require_adapters` raises, and
    `UsageError` for a network that computes weights with an expert from others.
    """
    import onnx
    from onnx import numpy_helper

    require_adapters(bundle)
    model = onnx.ModelProto.FromString(fused)
    graph = model.graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    bindings = {binding.source: binding for binding in bundle.manifest.graph.bindings}
    layers = {bindings[f"{e.name}.weight"].initializer: e for e in bundle.manifest.layers}
    heads = [bindings[part] for part in HEAD_TENSORS]
    if missing := {*layers, *(head.initializer for head in heads)} - values.keys():
        raise UsageError(
            f"this network computes {', '.join(sorted(missing)[:3])} from other weights, which an "
            "adapter can't hold",
            fix="export without adapters",
        )
    own: dict[str, _Own] = {}
    for head in heads:
        value = values[head.initializer]
        own[head.initializer] = _Own(value, value.ndim - 1 if head.transpose else 0)
    plain = _WithoutDelta(bundle.path, bundle.manifest, bundle.sha256).fuse(engine)
    expert = bundle.expert(engine)
    for name, layer in layers.items():
        node = _carrier(graph, name, layer, bundle)
        if node is None:
            own[name] = _Own(values[name])
            continue
        a = expert.get(layer.name + FACTORS[0])
        a = (
            np.zeros((1, math.prod(layer.shape[1:])), np.float32)
            if a is None
            else np.asarray(a, np.float32)
        )
        own |= _branched(graph, node, a, values[name], plain[name])
    _make_inputs(graph, own)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def share_base(artifact: Artifact, place: Path, export: Path) -> None:
    """Let the base of an engine with an adapter, whose files lie at `place`, be on the disk once
    for all tasks below `export`, where links are possible.
    """
    for base in artifact.files[1:]:
        for other in sorted(export.glob(f"[!.]*/[!.]*/[!.]*/{base.name}")):
            if other.parent != place and sha256_file(other) == base.sha256:
                (place / base.name).unlink()
                link_or_copy(other, place / base.name)
                break


def _carrier(
    graph: onnx.GraphProto, name: str, layer: LayerEntry, bundle: Bundle
) -> onnx.NodeProto | None:
    """The one node that takes a layer's weight and can have a branch beside it, else None."""
    users = [node for node in graph.node if name in node.input]
    if len(users) != 1 or list(users[0].input).index(name) != 1:
        return None
    (node,) = users
    if node.op_type == "MatMul":
        return node if len(layer.shape) == 2 else None
    thin = layer.shape[2:] == (1, 1) or bundle.manifest.factorisation == "separable"
    grouped = any(a.name == "group" and a.i != 1 for a in node.attribute)
    return node if node.op_type == "Conv" and thin and not grouped else None


def _branched(
    graph: onnx.GraphProto, node: onnx.NodeProto, a: F32, fused: F32, plain: F32
) -> dict[str, _Own]:
    """Give `node` W0 and a branch beside it; its two factors, by the names of their inputs.

    B is fitted to what the fusion made of the update, folded norms and scale included; its rows
    are combinations of those of A, so that nothing but rounding is left.
    """
    import onnx
    from onnx import helper, numpy_helper

    weight, out = node.input[1], node.output[0]
    delta = fused.astype(np.float64) - plain
    if node.op_type == "Conv":
        b = delta.reshape(len(delta), -1) @ np.linalg.pinv(a.astype(np.float64))
        first = _Own(a.reshape(len(a), *plain.shape[1:]), 0)
        second = _Own(b.astype(np.float32)[..., None, None], 1)
    else:  # the weight stands as (Cin, Cout)
        b = np.linalg.pinv(a.astype(np.float64).T) @ delta
        first, second = _Own(np.ascontiguousarray(a.T), 1), _Own(b.astype(np.float32), 0)
    down = onnx.NodeProto()
    down.CopyFrom(node)
    node.output[0] = f"{out}.W0"
    del down.input[2:]  # the bias stays with W0
    down.input[1], down.output[0], down.name = f"{weight}.A", f"{out}.low", f"{node.name}.A"
    up = helper.make_node(node.op_type, [f"{out}.low", f"{weight}.B"], [f"{out}.delta"])
    added = helper.make_node("Add", [f"{out}.W0", f"{out}.delta"], [out])
    place = list(graph.node).index(node) + 1
    for new in (added, up, down):
        graph.node.insert(place, new)
    for initializer in graph.initializer:
        if initializer.name == weight:
            initializer.CopyFrom(numpy_helper.from_array(plain, weight))
    return {f"{weight}.A": first, f"{weight}.B": second}


def _make_inputs(graph: onnx.GraphProto, own: dict[str, _Own]) -> None:
    """Declare `own` as inputs with these defaults."""
    from onnx import TensorProto, helper, numpy_helper

    kept = [initializer for initializer in graph.initializer if initializer.name not in own]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    for name in sorted(own):
        value, free = own[name]
        shape = [None if axis == free else length for axis, length in enumerate(value.shape)]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        if output.name in OF_CLASSES:
            dims[1].Clear()


class _WithoutDelta(Bundle):
    """The same bundle with every B zero: fusing gives W0, with its norms folded."""

    def expert(self, task: str) -> dict[str, F32]:
        own = super().expert(task)
        return {n: np.zeros_like(v) if n.endswith(FACTORS[1]) else v for n, v in own.items()}
