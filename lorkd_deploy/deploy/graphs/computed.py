"""Weights that a network computes from others: computed once here instead of at every inference.

Weight norm, spectral norm and weight standardisation are nodes of the graph that read weights and
nothing else. What they give is a weight like any other afterwards, so that every precision and
target can have it, and no engine computes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.read import FRESH_COPY
from lorkd_deploy.errors import BundleError, first_line

if TYPE_CHECKING:
    import onnx

_BY_CHANCE = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")
_KEPT = ("QuantizeLinear", "DequantizeLinear", "Cast")  # forms of one weight, not computations


def compute_weights(model: onnx.ModelProto, where: Path) -> None:
    """Replace, in place, every node that depends on initialisers alone by what it gives.

    Constants that no weight has a part in stay nodes. Raises `BundleError`, naming the bundle at
    `where`, for a value that is computed and not finite, and for a node that can't be computed.
    """
    import numpy as np
    from onnx import numpy_helper

    graph = model.graph
    fixed, computed = _computed(graph)
    if not computed:
        return
    done = {name for node in computed for name in node.output if name}
    outside = [node for node in graph.node if done.isdisjoint(node.output)]
    used = {name for node in outside for name in _reads(node)}
    needed = sorted((used | {value.name for value in graph.output}) & done)
    for name, value in zip(needed, _values(model, fixed, needed, where), strict=True):
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise BundleError(
                f"the weight {name}, computed from others, is not finite",
                where=where,
                fix="look at the layer's own weights in the run that the bundle was made by: one "
                "of them is zero, or too large",
            )
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    left = [initializer for initializer in graph.initializer if initializer.name in used]
    nodes = [n for n in outside if n.op_type != "Constant" or used.intersection(n.output)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(left)


def _computed(
    graph: onnx.GraphProto,
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The nodes whose outputs are the same for every input, and those that a weight has a part in,
    both in their order."""
    weights = {i.name for i in graph.initializer if i.data_type == i.FLOAT and i.dims}
    known = {i.name for i in graph.initializer}
    fixed, computed = [], []
    for node in graph.node:
        reads = set(_reads(node))
        if node.op_type in _BY_CHANCE or node.op_type in _KEPT or not reads <= known:
            continue
        if any(attribute.HasField("g") for attribute in node.attribute):
            continue
        known.update(node.output)
        fixed.append(node)
        if reads & weights:
            weights.update(node.output)
            computed.append(node)
    return fixed, computed


def _values(
    model: onnx.ModelProto, fixed: list[onnx.NodeProto], names: list[str], where: Path
) -> list[F32]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    read = {name for node in fixed for name in _reads(node)}
    part = onnx.helper.make_graph(
        fixed,
        "weights",
        [],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [initializer for initializer in model.graph.initializer if initializer.name in read],
    )
    whole = onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    try:
        return list(ReferenceEvaluator(whole).run(None, {}))
    except MemoryError:
        raise
    except Exception as exc:  # onnx raises nearly anything over nodes that don't belong together
        raise BundleError(
            f"the graph's weights {', '.join(names[:3])} can't be computed from its others: "
            f"{type(exc).__name__}, {first_line(exc)}",
            where=where,
            fix=FRESH_COPY,
        ) from exc


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            yield from _reads(inner)
