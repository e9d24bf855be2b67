"""Which layer of the network a node of its ONNX graph came from, for a message that can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def layer_of(
    graph: onnx.GraphProto, node: onnx.NodeProto, sources: Mapping[str, str] | None = None
) -> str | None:
    """`layer stem.conv` for a node that holds its weights, `after stem.conv` for one that follows.

    `sources` maps an initialiser to the tensor of the torch model that it was filled from, where
    that is known; else its own name is taken. None where no weight stands before the node.
    """
    known = sources or {}
    held = {i.name: known.get(i.name, i.name) for i in graph.initializer}
    makers = {output: maker for maker in graph.node for output in maker.output}
    word, current, seen = "layer", node, set[int]()
    while id(current) not in seen:
        seen.add(id(current))
        own = [held[name] for name in current.input if "." in held.get(name, "")]
        if own:
            return f"{word} {own[0].rpartition('.')[0]}"
        word = "after"
        before = [makers[name] for name in current.input if name in makers]
        if not before:
            return None
        current = before[0]
    return None
