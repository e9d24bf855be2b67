"""Which nodes of an ONNX model a runtime complains about, for an error that can be acted on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_deploy.deploy.graphs.nodes import layer_of

if TYPE_CHECKING:
    import openvino  # type: ignore[import-untyped]


def with_nodes(said: str, onnx_path: Path) -> str:
    """`said`, and the nodes (at most three) whose own name stands in it, with the layer that each
    came from; where it has no node's name, those whose operator stands in it."""
    import onnx

    whole = {word.rstrip(".:") for word in re.findall(r"[\w/.:-]+", said)}
    words = whole | set(re.findall(r"\w+", said))
    graph = onnx.load(onnx_path).graph
    nodes = [node for node in graph.node if node.name and node.name in words]
    nodes = nodes or [node for node in graph.node if node.op_type in words]
    named = [
        _named(node.op_type, node.name or node.output[0], layer_of(graph, node))
        for node in nodes[:3]
    ]
    return _with(said, named, len(nodes) - 3)


def with_operator(said: str, exc: Exception, model: openvino.Model) -> str:
    """`said`, and the operators (at most three) of OpenVINO's `model` that the whole of its error
    calls by name, with the layer whose weights each holds."""
    words = {word.rstrip(".:") for word in re.findall(r"name\W{1,3}([\w/.:-]+)", str(exc))}
    found = [op for op in model.get_ordered_ops() if op.get_friendly_name() in words]
    named = [_named(op.get_type_name(), op.get_friendly_name(), _layer(op)) for op in found[:3]]
    return _with(said, named, len(found) - 3)


def _layer(op: openvino.Node) -> str | None:
    """The layer whose weights an operator of OpenVINO's holds; weights in f16 stand behind a
    conversion."""
    for value in op.inputs():
        held = value.get_source_output().get_node()
        if held.get_type_name() == "Convert":
            held = held.input(0).get_source_output().get_node()
        name: str = held.get_friendly_name()
        if held.get_type_name() == "Constant" and "." in name:
            return f"layer {name.rpartition('.')[0]}"
    return None


def _named(operator: str, name: str, layer: str | None) -> str:
    return f"{operator} {name!r}" + (f", {layer}" if layer else "")


def _with(said: str, named: list[str], more: int) -> str:
    rest = f" and {more} more" if more > 0 else ""
    return f"{said} (in the model: {'; '.join(named)}{rest})" if named else said
