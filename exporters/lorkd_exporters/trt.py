"""TensorRT 10.3 and later, and 11: the engine is built on the GPU that it runs on.

Run in this project's own tests over a stand-in alone, there being no GPU: written against the
documented API of 10.3 (JetPack 6) and 11.4.1, over the same code as `trt-rtx`, whose builder runs
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lorkd_deploy.arrays import Batch
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.runtime import (
    EngineFiles,
    EngineSpec,
    LayerTime,
    NoOptions,
    Probe,
    PythonSample,
    RunOptions,
    engine_path,
    parse_options,
    require_precision,
    require_running,
    unusable,
)
from lorkd_exporters import _tensorrt
from lorkd_exporters._cuda import gpus

PRECISIONS = ("fp32", "fp16", "int8")
OLDEST = (10, 3)
BLOCKED = {"11.3.0": "it can drop the bias of a matrix product, and gives wrong answers then"}
INSTEAD = "install 11.4.1 or later; on a Jetson with JetPack 6 its own TensorRT, 10.3"
INSTALL = "use the TensorRT of JetPack, or python -m pip install 'lorkd-deploy[tensorrt]'"
PYTHON_SAMPLE = PythonSample("import tensorrt", "tensorrt", fill("python/tensorrt.in"))


class Options(_tensorrt.Options):
    """What `--option` can say to this target."""

    version_compatible: bool = Field(default=False, description="runs on later minor versions too")


def probe() -> Probe:
    """Whether TensorRT is here, new enough, and has a GPU; it can't build without one."""
    if fault := unusable("tensorrt", "TensorRT", OLDEST, INSTALL):
        return fault
    import tensorrt  # type: ignore[import-not-found]

    version: str = tensorrt.__version__
    for blocked, why in BLOCKED.items():
        if version.startswith(blocked):
            reason = f"TensorRT {version} is blocked: {why}"
            return Probe(False, False, version, reason=reason, fix=INSTEAD)
    if not gpus():
        fix = "run `lorkd export` on the machine with the GPU"
        return Probe(False, False, version, reason="there is no GPU here", fix=fix)
    return Probe(True, True, version, PRECISIONS, converted=PRECISIONS[1:], int8="signed")


def export(onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
    """Build on the first GPU, with `spec.options` as `Options` says."""
    options = parse_options("trt", Options, spec.options)
    require_precision("trt", spec.precision, probe())
    import tensorrt

    def configure(config: Any) -> None:
        if options.version_compatible:
            config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)

    name = _tensorrt.COMPATIBLE if options.version_compatible else _tensorrt.ENGINE
    return _tensorrt.build(
        tensorrt, onnx_path, folder, spec, options, configure, name, loads_here=True
    )


def open(folder: Path, files: Sequence[str], options: RunOptions) -> _tensorrt.TensorRtRunner:
    """Load the engine on the first GPU; `RuntimeUnavailableError` where there is none."""
    parse_options("trt", NoOptions, options.options)
    require_running("trt", probe())
    path = engine_path(folder, files[0])
    import tensorrt

    return _tensorrt.TensorRtRunner(tensorrt, path, options.threads)


def layers(
    folder: Path, files: Sequence[str], options: RunOptions, batch: Batch, calls: int
) -> list[LayerTime]:
    """Each layer by TensorRT's profiler and inspector, not run by us; raises as `open` does."""
    import tensorrt

    with open(folder, files, options) as runner:
        return runner.layers(tensorrt, batch, calls)
