"""An example beside an ONNX engine: an input and what the engine gives of it, as ONNX's tools want.

    ENGINE'S FOLDER/
      model.onnx
      test_data_set_0/   input_0.pb   output_0.pb, and one for each further output

ONNX's own test runner and ONNX Runtime's `onnx_test_runner` and `onnxruntime_perf_test` find it
there. The input is the first of the bundle's generated ones: nobody's picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.runtime import IMAGE, Runner

DATA_SET = "test_data_set_0"


def write_example(folder: Path, bundle: Bundle, runner: Runner, *, raw: bool) -> None:
    """Write `DATA_SET` into an engine's `folder`; `runner` is the engine, open, `raw` its own."""
    from onnx import numpy_helper

    batch = bundle.manifest.preprocess.batch(known_inputs(bundle)[:1], raw=raw)
    tensors: dict[str, tuple[str, Any]] = {
        "input_0.pb": (IMAGE if raw else bundle.manifest.graph.input, batch)
    }
    for number, (name, values) in enumerate(runner.outputs(batch).items()):
        tensors[f"output_{number}.pb"] = name, values
    (folder / DATA_SET).mkdir()
    for file, (name, values) in tensors.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        (folder / DATA_SET / file).write_bytes(tensor.SerializeToString(deterministic=True))


def example_files(folder: Path) -> list[str]:
    """Names of the example's files in an engine's `folder`, relative to it; none without one."""
    return [f"{DATA_SET}/{file.name}" for file in sorted((folder / DATA_SET).glob("*.pb"))]
