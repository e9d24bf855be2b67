"""Which nodes of an ONNX model a runtime complains about, for an error that can be acted on."""

from __future__ import annotations

import re
from pathlib import Path


def with_nodes(said: str, onnx_path: Path) -> str:
    """`said`, and the nodes (at most three) whose operator or own name stands in it, with the
    layer that each came from."""
    import onnx

    from lorkd_deploy.deploy.layers import layer_of

    words = set(re.findall(r"[\w/.:-]+", said)) | set(re.findall(r"\w+", said))
    graph = onnx.load(onnx_path).graph
    named = []
    for node in graph.node:
        if {node.op_type, node.name} & words:
            layer = layer_of(graph, node)
            named.append(
                f"{node.op_type} {node.name or node.output[0]!r}" + (f", {layer}" if layer else "")
            )
    if not named:
        return said
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{said} (in the model: {'; '.join(named[:3])}{more})"
