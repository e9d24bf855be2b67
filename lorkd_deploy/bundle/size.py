"""How large a network's ONNX file is: the format ends at 2 GiB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lorkd_deploy.errors import ModelError

if TYPE_CHECKING:
    import onnx

LIMIT = (1 << 31) - (16 << 20)  # bytes of weights: protobuf's limit, less room for graph and names


def check_template(template: bytes, *, where: object = None) -> None:
    """`check_size` of a template as a bundle keeps it."""
    import onnx

    check_size(onnx.ModelProto.FromString(template).graph, where=where)


def check_size(graph: onnx.GraphProto, *, where: object = None) -> None:
    """Raise `ModelError` where the weights of a template's `graph`, float32, exceed `LIMIT`."""
    weights = sum(4 * math.prod(i.dims) for i in graph.initializer if not i.raw_data)
    if weights > LIMIT:
        raise ModelError(
            f"the network's weights take {weights / (1 << 30):.1f} GiB, and an ONNX file holds 2 "
            "at most: no engine can be made of it",
            where=where,
            fix="decompose it into a smaller student, whose experts become engines; a teacher of "
            "this size can be trained, imported and learnt from, but not exported",
        )
