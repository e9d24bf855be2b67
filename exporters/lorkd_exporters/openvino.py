"""OpenVINO: the fused model as IR (`.xml`, `.bin`), its arithmetic written down and pinned.

Left to itself the CPU computes in bf16 wherever it can, and takes f16 for bf16, without a word. So
the inference precision stands in the IR, is set when the engine is opened, and is read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lorkd_deploy.arrays import Batch
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError
from lorkd_deploy.runtime import (
    EngineFiles,
    EngineSpec,
    LayerTime,
    Probe,
    PythonSample,
    Raw,
    RunOptions,
    engine_path,
    parse_options,
    require_precision,
    require_running,
    unusable,
)
from lorkd_deploy.schema import Part
from lorkd_exporters._layers import of_openvino
from lorkd_exporters._nodes import with_nodes, with_operator
from lorkd_exporters._openvino import OpenVinoRunner, said

if TYPE_CHECKING:
    import openvino  # type: ignore[import-untyped]

MODEL = "model.xml"
WEIGHTS = "model.bin"
OLDEST = (2026, 4)
INSTALL = "python -m pip install 'lorkd-deploy[openvino]'"
PYTHON_SAMPLE = PythonSample("import openvino", "openvino", fill("python/openvino.in"))


class Options(Part):
    """What `--option` can say to this target."""

    device: str = Field(default="CPU", description="CPU, GPU or NPU, as OpenVINO calls them")
    cache: str | None = Field(
        default=None,
        min_length=1,
        exclude=True,  # a folder of this machine: the IR says it to whoever opens the engine
        description="a folder for compiled models, so that later openings are faster; a relative "
        "one lies beside the engine",
    )
    raw: Raw = False


class Opening(Part):
    """What `RunOptions` can say to this target's engines."""

    cache: str | None = Field(
        default=None, min_length=1, description="a folder for compiled models, not the exported one"
    )


def probe() -> Probe:
    """Whether OpenVINO is here, and what its CPU can do."""
    if fault := unusable("openvino", "openvino", OLDEST, INSTALL):
        return fault
    import openvino

    version = openvino.__version__.partition("-")[0]  # the release, without its build
    core = openvino.Core()
    if "CPU" not in core.available_devices:
        return Probe(False, False, version, reason="it was installed without CPU", fix=INSTALL)
    return Probe(True, True, version, tuple(_precisions(core, "CPU")), converted=("int8",))


def export(onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
    """Write the IR for `spec.options["device"]`.

    `fp16` halves the weights; the arithmetic is f16 where the device has it and f32 elsewhere,
    which the facts say. Raises `RuntimeUnavailableError` for a device or precision that isn't
    here, `UsageError` for an unknown option, `ArtifactError` for an operator that OpenVINO lacks.
    """
    options = parse_options("openvino", Options, spec.options)
    require_precision("openvino", "fp32", probe())
    import openvino

    core = openvino.Core()
    hint = _hint(core, options.device, spec.precision)
    try:
        # Not `convert_model`: it reports to the vendor over the network.
        model = core.read_model(onnx_path)
    except RuntimeError as exc:
        raise ArtifactError(
            f"OpenVINO can't take this model: {with_nodes(said(exc), onnx_path)}"
        ) from exc
    described = {
        "device": options.device,
        "precision": spec.precision,
        "inference_precision": hint,
    }
    if options.cache is not None:
        described["cache"] = options.cache
    for name, value in described.items():
        model.set_rt_info(value, ["lorkd", name])
    try:
        openvino.save_model(model, folder / MODEL, compress_to_fp16=spec.precision == "fp16")
    except RuntimeError as exc:  # "iostream error", where Python would say that the disk is full
        raise ArtifactError(
            f"OpenVINO can't write the engine: {said(exc)}",
            fix="free space there, or choose another disk by --out; `df` shows what is full",
        ) from exc
    return EngineFiles((MODEL, WEIGHTS), {"options": options.model_dump()})


def open(folder: Path, files: Sequence[str], options: RunOptions) -> OpenVinoRunner:
    """Compile the IR for its device with `options.threads` threads, for latency.

    Raises `ArtifactError` for a missing or damaged file, `RuntimeUnavailableError` where OpenVINO,
    the device or the arithmetic isn't here.
    """
    compiled, facts, cache = _opened(folder, files, options)
    if cache is not None:
        facts["from_cache"] = bool(compiled.get_property("LOADED_FROM_CACHE"))
    return OpenVinoRunner(compiled, facts, cache)


def layers(
    folder: Path, files: Sequence[str], options: RunOptions, batch: Batch, calls: int
) -> list[LayerTime]:
    """Each node that was executed, by OpenVINO's performance counters; raises as `open` does."""
    compiled, _, _ = _opened(folder, files, options, counting=True)
    request = compiled.create_infer_request()
    told = []
    for _ in range(calls):
        request.infer([batch])
        told.append(request.get_profiling_info())
    return of_openvino(told)


def _opened(
    folder: Path, files: Sequence[str], options: RunOptions, *, counting: bool = False
) -> tuple[openvino.CompiledModel, dict[str, Any], Path | None]:
    """The compiled model, what it really is, and the folder of its runtime's cache."""
    found = probe()  # once: asking the device takes tens of milliseconds
    require_running("openvino", found)
    given = parse_options("openvino", Opening, options.options)
    paths = [engine_path(folder, name) for name in files]
    import openvino

    core = openvino.Core()
    model, written = _read(core, paths)
    device, hint = written["device"], written["inference_precision"]
    _require_device(core, device)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if counting:
        settings["PERF_COUNT"] = True
    cache = given.cache or written.get("cache")
    if cache is not None:
        settings["CACHE_DIR"] = str(folder / cache)
    compiled = _compiled(core, model, device, settings, folder)
    facts = {
        "runtime": "openvino",
        "version": found.version,
        "provider": device,
        "precision": written["precision"],
        "inference_precision": hint,
        "threads": options.threads,
    }
    return compiled, facts, None if cache is None else folder / cache


def _read(core: openvino.Core, paths: Sequence[Path]) -> tuple[openvino.Model, dict[str, str]]:
    """The IR, and what `export` wrote into it."""
    try:
        model = core.read_model(*paths)
        names = ["device", "precision", "inference_precision"]
        names += ["cache"] if model.has_rt_info(["lorkd", "cache"]) else []
        return model, {name: str(model.get_rt_info(["lorkd", name]).value) for name in names}
    except RuntimeError as exc:
        raise ArtifactError(
            f"{paths[0].name} is damaged or no engine: {said(exc)}",
            where=paths[0].parent,
            fix="run `lorkd export` again",
        ) from exc


def _compiled(
    core: openvino.Core, model: openvino.Model, device: str, settings: dict[str, Any], folder: Path
) -> openvino.CompiledModel:
    """The model for `device`, computing in nothing but what `settings` ask for."""
    try:
        compiled = core.compile_model(model, device, settings)
    except RuntimeError as exc:
        raise ArtifactError(
            f"OpenVINO can't compile the engine for {device}: "
            f"{with_operator(said(exc), exc, model)}",
            where=folder,
        ) from exc
    hint = settings["INFERENCE_PRECISION_HINT"]
    real = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if real != hint:
        raise RuntimeUnavailableError(
            f"{device} of this machine would compute in {real}, the engine asks for {hint}",
            fix="run `lorkd export` on this machine, or choose another --precision",
        )
    return compiled


def _precisions(core: openvino.Core, device: str) -> dict[str, str]:
    """Precision → the inference precision that stands for it on `device`."""
    able = set(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    plain = "f32" if "FP32" in able else "f16"
    found = {"fp32": "f32"} if "FP32" in able else {}
    found["fp16"] = "f16" if "FP16" in able else "f32"
    if "BF16" in able:
        found["bf16"] = "bf16"
    if "INT8" in able:
        found["int8"] = plain  # of whatever isn't quantised
    return found


def _hint(core: openvino.Core, device: str, precision: str) -> str:
    _require_device(core, device)
    able = _precisions(core, device)
    if precision not in able:
        raise RuntimeUnavailableError(
            f"openvino can't do {precision} on the {device} of this machine",
            fix=f"it can do: {', '.join(able)}",
        )
    return able[precision]


def _require_device(core: openvino.Core, device: str) -> None:
    if device not in core.available_devices:
        raise RuntimeUnavailableError(
            f"OpenVINO finds no {device} on this machine",
            fix=f"it finds: {', '.join(core.available_devices)}",
        )
