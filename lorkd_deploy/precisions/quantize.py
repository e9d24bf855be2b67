"""`python -m lorkd_deploy.precisions.quantize FOLDER [tensor]`: NNCF's part of `passes.int8`,
alone. Reads `model.onnx`, `images.npy` and `left.json`, writes `int8.onnx`.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from lorkd_deploy.runtime import FEATURES


class Given(NamedTuple):
    """What both of NNCF's functions take: a model, images to calibrate on and how many these are,
    the nodes that stay as they are, and its advanced parameters."""

    model: Any
    data: Any
    images: int
    left: set[str]
    advanced: Any


def main(folder: Path, *, tensor: bool = False) -> None:
    """Quantise the model in `folder`, calibrated on all of the images there.

    Each activation has one scale a `tensor` and zero point 0, if asked for; else the input of a
    depthwise convolution has one per channel. What leads to a guard's features stays as it is,
    since that measures small differences in what the first layer gives; so do the nodes that lead
    to maps alone, and those that `left.json` names.
    """
    import onnx

    left = json.loads((folder / "left.json").read_bytes())
    onnx.save(quantised(given(folder, left, tensor=tensor)), folder / "int8.onnx")


def given(folder: Path, left: list[str], *, tensor: bool) -> Given:
    """Read what is to be quantised, and import NNCF without what it does without."""
    modules: dict[str, Any] = sys.modules
    # It does without both: torch takes seconds to import, telemetry reports to the vendor.
    modules["torch"] = modules["openvino_telemetry"] = None
    import nncf  # type: ignore[import-untyped]
    import numpy as np
    import onnx
    from nncf.common.quantization.structs import (  # type: ignore[import-untyped]
        QuantizationScheme,
    )
    from nncf.quantization.advanced_parameters import (  # type: ignore[import-untyped]
        QuantizationParameters,
    )

    form = QuantizationParameters(mode=QuantizationScheme.SYMMETRIC, per_channel=False)
    advanced = nncf.AdvancedQuantizationParameters(activations_quantization_params=form)
    model = onnx.load(folder / "model.onnx")
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_nncf_{place}"  # as NNCF calls it too
    images = np.load(folder / "images.npy", allow_pickle=False)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(images), lambda image: {name: image[None]})
    logits, *others = (output.name for output in model.graph.output)
    own = _makers(model.graph, set(others)) - _makers(model.graph, {logits})
    kept = own | _makers(model.graph, {FEATURES} & set(others)) | set(left)
    return Given(model, data, len(images), kept, advanced if tensor else None)


def quantised(what: Given) -> Any:
    """The ONNX model in int8; the one that is given stays as it is."""
    import nncf

    return nncf.quantize(
        deepcopy(what.model),  # which NNCF tidies up
        what.data,
        subset_size=what.images,
        ignored_scope=nncf.IgnoredScope(names=sorted(what.left)) if what.left else None,
        advanced_parameters=what.advanced,
    )


def _makers(graph: Any, outputs: set[str]) -> set[str]:
    """Names of all nodes that `outputs` depend on."""
    needed, found = set(outputs), set()
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            found.add(node.name)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), tensor="tensor" in sys.argv[2:])
