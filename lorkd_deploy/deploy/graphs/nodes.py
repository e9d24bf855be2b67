"""The nodes of an ONNX model: which layer of the network each came from, and the model cut off
behind one of them, so that any runtime can be asked for what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

OUTPUT = "lorkd.probe"


class Cuttable:
    """An ONNX classifier whose inner tensors can be had as models of their own.

    `tensors` are the float tensors that depend on its input, in the order in which they are
    computed; the last one is its logits. What leads to further outputs alone is left out.
    """

    def __init__(self, model: bytes) -> None:
        import onnx

        self.model = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(model))
        graph = self.model.graph
        self.makers = {output: node for node in graph.node for output in node.output if output}
        kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.output)
        }
        self._half = {n for n, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
        reached = {graph.input[0].name}
        self.tensors: list[str] = []
        for node in graph.node:
            if reached & set(node.input):
                reached.update(node.output)
                self.tensors += [o for o in node.output if o and kinds.get(o, 1) in floats]
        logits = graph.output[0].name
        above = self.ancestors(logits) | {logits}
        self.tensors = [name for name in self.tensors if name in above]

    def parents(self, tensor: str) -> list[str]:
        """What the node that makes `tensor` takes, without weights."""
        node = self.makers.get(tensor)
        return [] if node is None else [name for name in node.input if name in self.makers]

    def ancestors(self, tensor: str) -> set[str]:
        """Every tensor that `tensor` is computed from."""
        found: set[str] = set()
        waiting = self.parents(tensor)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.parents(name)
        return found

    def up_to(self, tensor: str) -> bytes:
        """The model that gives `tensor`, one row per image, as float32 `(N, anything)`."""
        import onnx

        cut = onnx.ModelProto()
        cut.CopyFrom(self.model)
        graph, last, to = cut.graph, tensor, onnx.TensorProto.FLOAT
        if tensor in self._half:
            last = f"{OUTPUT}.float"
            graph.node.append(onnx.helper.make_node("Cast", [tensor], [last], to=to))
        graph.node.append(onnx.helper.make_node("Flatten", [last], [OUTPUT], axis=1))
        shape = [graph.input[0].type.tensor_type.shape.dim[0].dim_param or None, None]
        keep(graph, [onnx.helper.make_tensor_value_info(OUTPUT, to, shape)])
        del graph.value_info[:]
        data: bytes = cut.SerializeToString(deterministic=True)
        return data


def keep(graph: onnx.GraphProto, outputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Leave nothing in `graph` but what leads to `outputs`, which become its own."""
    needed = {value.name for value in outputs}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)  # "": an optional one is left out
            nodes.append(node)
    weights = [value for value in graph.initializer if value.name in needed]
    # The network's own input comes first; behind it may be weights that are inputs with defaults.
    inputs = [value for place, value in enumerate(graph.input) if not place or value.name in needed]
    for field, kept in (
        ("node", nodes[::-1]),
        ("initializer", weights),
        ("input", inputs),
        ("output", outputs),
    ):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(kept)


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
        names = [held.get(name, "").replace(":", ".") for name in current.input]  # `head:weight`
        own = [layer for name in names if (layer := name.rpartition(".")[0])]
        if own:
            return f"{word} {own[0]}"
        word = "after"
        before = [makers[name] for name in current.input if name in makers]
        if not before:
            return None
        current = before[0]
    return None
