"""`python -m lorkd_deploy.precisions.quantize FOLDER [tensor]`: NNCF's part of `passes.int8`,
alone. Reads `model.onnx` and `images.npy`, writes `int8.onnx`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(folder: Path, *, tensor: bool = False) -> None:
    """Quantise the model in `folder`, calibrated on all of the images there.

    Each activation has one scale a `tensor` and zero point 0, if asked for; else the input of a
    depthwise convolution has one per channel. What leads to an output beside the logits stays as it
    is: a guard measures small differences in what the first layer gives.
    """
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
    images = np.load(folder / "images.npy", allow_pickle=False)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(images), lambda image: {name: image[None]})
    features = _makers(model.graph, [output.name for output in model.graph.output[1:]])
    quantised = nncf.quantize(
        model,
        data,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=features) if features else None,
        advanced_parameters=advanced if tensor else None,
    )
    onnx.save(quantised, folder / "int8.onnx")


def _makers(graph: Any, outputs: list[str]) -> list[str]:
    """Names of all nodes that `outputs` depend on."""
    needed, found = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            found.append(node.name)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), tensor="tensor" in sys.argv[2:])
