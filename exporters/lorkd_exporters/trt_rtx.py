"""TensorRT for RTX: builds ahead of time for given compute capabilities, without a GPU.

The machine that builds needs no GPU, the one that runs has one of the capabilities built for. It
is not Jetson's TensorRT: that is the target `trt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
OLDEST = (1, 7)
SUPPORTED = (75, 80, 86, 89, 120, 121)
INSTALL = "python -m pip install 'lorkd-deploy[tensorrt-rtx]'"
PYTHON_SAMPLE = PythonSample(
    "import tensorrt_rtx as tensorrt", "tensorrt-rtx", fill("python/tensorrt.in")
)
Capability = Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]


class Options(_tensorrt.Options):
    """What `--option` can say to this target."""

    compute_capabilities: tuple[Capability, ...] = Field(
        default=("SM86", "SM89", "SM120"), min_length=1, description="GPUs to build for"
    )


def probe() -> Probe:
    """Whether TensorRT for RTX is here; it runs where one of its GPUs is."""
    if fault := unusable("tensorrt_rtx", "TensorRT for RTX", OLDEST, INSTALL):
        return fault
    import tensorrt_rtx  # type: ignore[import-untyped]

    version: str = tensorrt_rtx.__version__
    found = gpus()
    if found and found[0].capability in SUPPORTED:
        return Probe(True, True, version, PRECISIONS, converted=PRECISIONS[1:], int8="signed")
    here = f"the GPU here is none ({found[0].name})" if found else "there is none here"
    return Probe(
        True,
        False,
        version,
        PRECISIONS,
        reason=f"it runs on GeForce RTX and RTX PRO GPUs, and {here}",
        fix="copy the folder to the machine with the GPU and run `lorkd verify` there",
        converted=PRECISIONS[1:],
        int8="signed",
    )


def export(onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
    """Build for `spec.options["compute_capabilities"]`; see `_tensorrt.Options` for the rest."""
    options = parse_options("trt-rtx", Options, spec.options)
    require_precision("trt-rtx", spec.precision, probe())
    import tensorrt_rtx

    def configure(config: Any) -> None:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, name), index)

    found = gpus()
    here = bool(found) and f"SM{found[0].capability}" in options.compute_capabilities
    return _tensorrt.build(
        tensorrt_rtx, onnx_path, folder, spec, options, configure, loads_here=here
    )


def open(folder: Path, files: Sequence[str], options: RunOptions) -> _tensorrt.TensorRtRunner:
    """Load the engine on the first GPU; `RuntimeUnavailableError` where there is none."""
    parse_options("trt-rtx", NoOptions, options.options)
    require_running("trt-rtx", probe())
    path = engine_path(folder, files[0])
    import tensorrt_rtx

    return _tensorrt.TensorRtRunner(tensorrt_rtx, path, options.threads)


def layers(
    folder: Path, files: Sequence[str], options: RunOptions, batch: Batch, calls: int
) -> list[LayerTime]:
    """Each layer by TensorRT's profiler and inspector, not run by us; raises as `open` does."""
    import tensorrt_rtx

    with open(folder, files, options) as runner:
        return runner.layers(tensorrt_rtx, batch, calls)
