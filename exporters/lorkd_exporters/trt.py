"""TensorRT 10.3 and later, and 11: the engine is built on the GPU that it runs on.

Run in this project's own tests over a stand-in alone, there being no GPU: written against the
documented API of 10.3 (JetPack 6) and 11.4.1, over the same code as `trt-rtx`, whose builder runs
everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError
from lorkd_deploy.runtime import (
    EngineFiles,
    EngineSpec,
    NoOptions,
    Probe,
    PythonSample,
    RunOptions,
    engine_path,
    older,
    parse_options,
    require_precision,
)
from lorkd_deploy.storage import write_atomic
from lorkd_exporters import _tensorrt
from lorkd_exporters._cuda import gpus

PRECISIONS = ("fp32", "fp16", "int8")
OLDEST = (10, 3)
INT8_ON_DLA = (11, 4, 1)  # calibrated by TensorRT before (TensorRT#2222, Model-Optimizer#1661)
BLOCKED = {"11.3.0": "it can drop the bias of a matrix product, and gives wrong answers then"}
INSTEAD = "install 11.4.1 or later; on a Jetson with JetPack 6 its own TensorRT, 10.3"
INSTALL = "use the TensorRT of JetPack, or python -m pip install 'lorkd-deploy[tensorrt]'"
PYTHON_SAMPLE = PythonSample("import tensorrt", "tensorrt", fill("python/tensorrt.in"))


class Options(_tensorrt.Options):
    """What `--option` can say to this target."""

    timing_cache: str | None = Field(
        default=None,
        exclude=True,  # a file of the machine that built it, and nothing of the engine
        description="a file; kept from build to build it makes the next one faster",
    )
    hardware: Literal["NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"] = Field(
        default="NONE", description="other GPUs that it may run on, at some cost of speed"
    )
    version_compatible: bool = Field(default=False, description="runs on later minor versions too")
    dla: int | None = Field(
        default=None,
        ge=0,
        description="Jetson's DLA core to use, with the GPU for the rest; it takes one batch only",
    )
    refit: bool = Field(
        default=False, description="its weights can be exchanged (Switchboard), at a cost of speed"
    )

    @model_validator(mode="after")
    def _dla_has_one_batch(self) -> Options:
        # With a range of batches every layer would go to the GPU, with no more than a log line.
        if self.dla is not None and self.min_batch != self.max_batch:
            raise ValueError(
                f"a DLA core takes batches of one size, and min_batch is {self.min_batch}, "
                f"max_batch {self.max_batch}"
            )
        return self


def probe() -> Probe:
    """Whether TensorRT is here, new enough, and has a GPU; it can't build without one."""
    try:
        import tensorrt  # type: ignore[import-not-found]
    except ImportError as exc:
        missing = isinstance(exc, ModuleNotFoundError)
        reason = "tensorrt is not installed" if missing else f"tensorrt is broken: {exc}"
        return Probe(False, False, None, reason=reason, fix=INSTALL)
    version: str = tensorrt.__version__
    if old := older("TensorRT", version, OLDEST):
        return Probe(False, False, version, reason=old, fix=INSTALL)
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
    if options.refit and spec.precision == "int8":
        raise UsageError(
            "an int8 engine can't be refitted: it has the scales of its own task's images",
            fix="--precision fp16",
        )
    import tensorrt

    def configure(builder: Any, config: Any) -> None:
        cache = None if options.timing_cache is None else Path(options.timing_cache)
        if cache is not None:
            known = cache.read_bytes() if cache.is_file() else b""
            timings = config.create_timing_cache(known)
            if timings is None or not config.set_timing_cache(timings, False):
                raise UsageError(
                    "the timing cache is damaged, or of another TensorRT or GPU",
                    where=cache,
                    fix="delete it, or name another file: it is written anew",
                )
        if options.hardware != "NONE":
            level = getattr(tensorrt.HardwareCompatibilityLevel, options.hardware, None)
            if level is None:
                raise _too_old(f"hardware={options.hardware}", tensorrt.__version__)
            config.hardware_compatibility_level = level
        if options.version_compatible:
            config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
        if options.refit:
            config.set_flag(tensorrt.BuilderFlag.REFIT)
        if options.dla is not None:
            _use_dla(tensorrt, builder, config, options.dla, spec.precision)
        configs.append(config)

    configs: list[Any] = []
    name = _tensorrt.COMPATIBLE if options.version_compatible else _tensorrt.ENGINE
    if options.dla is not None:
        name = name.replace(".engine", f".dla{options.dla}.engine")
    files = _tensorrt.build(
        tensorrt, onnx_path, folder, spec, options, configure, name, loads_here=True
    )
    if options.timing_cache is not None:
        timings = configs[0].get_timing_cache().serialize()
        write_atomic(Path(options.timing_cache), bytes(memoryview(timings)))
    if options.dla is None:
        return files
    return replace(files, facts=files.facts | _placed(folder, options.dla))


def open(folder: Path, files: Sequence[str], options: RunOptions) -> _tensorrt.TensorRtRunner:
    """Load the engine on the first GPU; `RuntimeUnavailableError` where there is none."""
    parse_options("trt", NoOptions, options.options)
    found = probe()
    if not found.can_run:
        raise RuntimeUnavailableError(f"trt can't run here: {found.reason}", fix=found.fix)
    path = engine_path(folder, files[0])
    import tensorrt

    return _tensorrt.TensorRtRunner(tensorrt, path, options.threads)


def _use_dla(trt: Any, builder: Any, config: Any, core: int, precision: str) -> None:
    cores = builder.num_DLA_cores
    if core >= cores:
        raise RuntimeUnavailableError(
            f"there is no DLA core {core}: TensorRT {trt.__version__} finds {cores} here",
            fix="DLA needs an AGX Orin or Orin NX with TensorRT up to 10.7 (JetPack 6), or an AGX "
            "Orin with 11.4.1 or later (JetPack 7.2.2)",
        )
    if precision not in ("fp16", "int8"):
        raise UsageError(f"a DLA core can't do {precision}", fix="--precision fp16")
    if precision == "int8" and (old := older("TensorRT", trt.__version__, INT8_ON_DLA)):
        raise RuntimeUnavailableError(
            f"DLA can't do int8 from quantise and dequantise nodes: {old}", fix="--precision fp16"
        )
    # fp16 by types is documented for DLA from 11 on; for 10, `_placed` says what came of it.
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _placed(folder: Path, core: int) -> dict[str, int]:
    """How many of the engine's layers run on the DLA core, and how many on the GPU.

    The builder's log names the device of each; where it doesn't, the engine's layer information
    does. Raises `ArtifactError` where none is on the DLA core, of which TensorRT makes no error.
    """
    log = (folder / _tensorrt.LOG).read_text(encoding="utf-8")
    dla, gpu = log.count("[DlaLayer]"), log.count("[GpuLayer]")
    if not dla:
        layers = json.loads((folder / _tensorrt.LAYERS).read_bytes())["Layers"]
        kinds = [layer.get("LayerType") for layer in layers if isinstance(layer, dict)]
        dla = kinds.count("DLA")
        gpu = len(layers) - dla
    if not dla:
        raise ArtifactError(
            f"no layer of this network runs on DLA core {core}: all {gpu} are on the GPU",
            fix="export it without --option dla",
        )
    return {"dla_layers": dla, "gpu_layers": gpu}


def _too_old(option: str, version: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(f"TensorRT {version} has no {option}", fix=INSTALL)
