"""`python -m lorkd_deploy.deploy.quantize FOLDER`: NNCF's part of `precision.int8`, alone.

Reads `model.onnx` and `images.npy`, writes `int8.onnx`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Quantise the model in `folder`, calibrated on all of the images there."""
    modules: dict[str, Any] = sys.modules
    # It does without both: torch takes seconds to import, telemetry reports to the vendor.
    modules["torch"] = modules["openvino_telemetry"] = None
    import nncf  # type: ignore[import-untyped]
    import numpy as np
    import onnx

    model = onnx.load(folder / "model.onnx")
    images = np.load(folder / "images.npy", allow_pickle=False)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(images), lambda image: {name: image[None]})
    onnx.save(nncf.quantize(model, data, subset_size=len(images)), folder / "int8.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
