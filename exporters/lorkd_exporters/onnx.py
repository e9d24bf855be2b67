"""ONNX Runtime: the fused ONNX model is the engine.

Threads are pinned, since the runtime would take the host's count and not the container's
(onnxruntime#8313). Execution providers are named and nothing else may run: left to itself the
runtime warns and takes the CPU. Those that an engine is exported for lie beside it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError, first_line
from lorkd_deploy.precisions.passes import KEY
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.runtime import (
    Closing,
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
from lorkd_deploy.schema import Part, document_bytes, read_document
from lorkd_deploy.storage import write_atomic
from lorkd_exporters import _adapters
from lorkd_exporters._layers import of_onnxruntime
from lorkd_exporters._nodes import with_nodes

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

MODEL = "model.onnx"
CHOSEN = "providers.json"
CPU = "CPUExecutionProvider"
PROVIDERS = {
    "CPU": CPU,
    "CUDA": "CUDAExecutionProvider",
    "TensorRT": "TensorrtExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
}
# Without these fp32 would be TF32 on the GPU, and what OpenVINO likes best on the CPU.
SETTINGS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"},
}
OLDEST = (1, 23)
PRECISIONS = ("fp32", "fp16", "int8")
INSTALL = "python -m pip install 'lorkd-deploy[onnx]'"
PYTHON_SAMPLE = PythonSample("import onnxruntime", "onnxruntime", fill("python/onnx.in"))


class Options(Part):
    """What `--option` can say to this target, and `RunOptions` to its engines."""

    providers: tuple[str, ...] = Field(
        default=("CPU",),
        min_length=1,
        description=f"execution providers, the best first: {', '.join(PROVIDERS)}",
    )
    adapters: bool = Field(
        default=False,
        strict=True,
        description="one session for all tasks: the base once, and a small adapter a task; each "
        "inference takes longer",
    )
    raw: Raw = False

    @field_validator("providers")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        spelt = {name.lower(): name for name in PROVIDERS}
        if unknown := [name for name in names if name.lower() not in spelt]:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(PROVIDERS)}")
        return tuple(dict.fromkeys(spelt[name.lower()] for name in names))

    @model_validator(mode="after")
    def _on_the_cpu(self) -> Options:
        if self.adapters and self.providers != ("CPU",):
            raise ValueError("adapters are for the CPU alone")
        return self


def probe() -> Probe:
    """Whether ONNX Runtime is here, new enough, and has its CPU provider."""
    if fault := unusable("onnxruntime", "onnxruntime", OLDEST, INSTALL):
        return fault
    import onnxruntime

    version: str = onnxruntime.__version__
    if CPU not in onnxruntime.get_available_providers():
        return Probe(False, False, version, reason=f"it was built without {CPU}", fix=INSTALL)
    # With one scale per channel, the CPU's quantised convolution can't take the input.
    return Probe(True, True, version, PRECISIONS, converted=PRECISIONS[1:], int8="tensor")


def export(onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
    """Take the model as it is, in its precision, for the execution providers that are asked for.

    Raises `RuntimeUnavailableError` for a precision or provider that isn't here.
    """
    require_precision("onnx", spec.precision, probe())
    options = parse_options("onnx", Options, spec.options)
    _require(options.providers)
    if options.adapters:
        if spec.precision != BASELINE:
            raise UsageError(f"adapters are {BASELINE}, {spec.precision} was asked for")
        _adapters.divide(onnx_path, folder)
        chosen = {"adapters": True}
        return EngineFiles((_adapters.ADAPTER, _adapters.BASE), {"options": chosen})
    shutil.copyfile(onnx_path, folder / MODEL)
    if options.providers == Options().providers:
        return EngineFiles((MODEL,))
    chosen = options.model_dump(mode="json", exclude={"adapters"})
    write_atomic(folder / CHOSEN, document_bytes(chosen))
    return EngineFiles((MODEL, CHOSEN), {"options": chosen})


def open(folder: Path, files: Sequence[str], options: RunOptions) -> OnnxRunner:
    """Load `files[0]` with `options.threads` CPU threads.

    It runs on the providers that `options` name, else on those it was exported for. Raises
    `ArtifactError` for a missing or damaged model, `RuntimeUnavailableError` where ONNX Runtime,
    or a provider, can't run here.
    """
    session, adapter = _opened(folder, files, options)
    try:
        return OnnxRunner(session, options.threads, adapter)
    except UnicodeDecodeError as exc:  # the runtime looks at names only when they are asked for
        raise _refused(engine_path(folder, files[0]), exc) from exc


def layers(
    folder: Path, files: Sequence[str], options: RunOptions, batch: Batch, calls: int
) -> list[LayerTime]:
    """Each node of the optimised graph by ONNX Runtime's own profile; raises as `open` does."""
    with tempfile.TemporaryDirectory() as place:
        session, adapter = _opened(folder, files, options, profile=Path(place) / "profile")
        name = session.get_inputs()[0].name
        for _ in range(calls):
            session.run(None, {name: batch}, adapter.options)
        return of_onnxruntime(Path(session.end_profiling()))


def _opened(
    folder: Path, files: Sequence[str], options: RunOptions, profile: Path | None = None
) -> tuple[onnxruntime.InferenceSession, _adapters.Adapter]:
    """The session of an engine, and the adapter with which it is the task's."""
    require_running("onnx", probe())
    given = dict(options.options)
    if CHOSEN in files and "providers" not in given:
        given |= read_document(
            engine_path(folder, CHOSEN), ArtifactError, "run `lorkd export` again"
        )
    providers = parse_options("onnx", Options, given).providers
    _require(providers)
    if _adapters.BASE not in files:
        file = engine_path(folder, files[0])
        return _session(file, options.threads, providers, profile), _adapters.NONE
    base = engine_path(folder, _adapters.BASE)
    opened = partial(_session, base, options.threads, providers, profile)
    session = opened() if profile else _adapters.shared(base, options.threads, opened)
    return session, _adapters.active(engine_path(folder, files[0]))


class OnnxRunner(Closing):
    """A loaded model: float32 `(N, 3, S, S)` → float32 logits `(N, K)`, or what `raw` makes of
    both."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        threads: int,
        adapter: _adapters.Adapter = _adapters.NONE,
    ) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        kinds = [value.type for value in (*inputs, *outputs)]
        fits = kinds[:1] in (["tensor(float)"], ["tensor(uint8)"])
        if len(inputs) != 1 or not outputs or not fits or set(kinds[1:]) != {"tensor(float)"}:
            raise ArtifactError(
                f"this model is no engine: it maps {len(inputs)} tensors to {len(outputs)} "
                f"({', '.join(kinds)}), a float32 or uint8 one to a float32 one is needed"
            )
        self._run: Callable[..., Any] = session.run
        self._adapter = adapter
        self._input: str = inputs[0].name
        self._outputs = [outputs[0].name]
        self._all = [value.name for value in outputs]
        self.facts: dict[str, Any] = {
            "runtime": "onnxruntime",
            "version": probe().version,
            "provider": session.get_providers()[0],
            "precision": session.get_modelmeta().custom_metadata_map.get(KEY, BASELINE),
            "threads": threads,
        }
        if session.get_providers() != [CPU]:
            self.facts["nodes"] = _nodes_by_provider(session)

    def __call__(self, batch: Batch) -> F32:
        """Logits of `batch`; raises `ArtifactError` where the runtime refuses or fails."""
        return self._given(self._outputs, batch)[0]

    def outputs(self, batch: Batch) -> dict[str, F32]:
        """Every output of `batch` by name; raises as a call does."""
        return dict(zip(self._all, self._given(self._all, batch), strict=True))

    def _given(self, names: list[str], batch: Batch) -> list[F32]:
        try:
            given: list[F32] = self._run(names, {self._input: batch}, self._adapter.options)
        except Exception as exc:  # the runtime has no base class for its errors
            raise ArtifactError(
                f"the engine failed on {batch.dtype} {batch.shape}: {first_line(exc)}"
            ) from exc
        return given

    def close(self) -> None:
        """Free the model; calling the runner after this raises `ArtifactError`."""
        self._run = _closed
        self._adapter = _adapters.NONE


def _require(providers: Sequence[str]) -> None:
    """Raise `RuntimeUnavailableError` for a provider that this ONNX Runtime doesn't have."""
    import onnxruntime

    here = onnxruntime.get_available_providers()
    if missing := [name for name in providers if PROVIDERS[name] not in here]:
        raise RuntimeUnavailableError(
            f"this ONNX Runtime has no execution provider {', '.join(missing)}",
            fix="it has: "
            + ", ".join(name for name, full in PROVIDERS.items() if full in here)
            + "; onnxruntime-gpu (CUDA, TensorRT) and onnxruntime-openvino are builds of their own",
        )


def _session(
    path: Path, threads: int, providers: Sequence[str], profile: Path | None = None
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # operators one after the other: these networks are chains
    options.log_severity_level = 3  # what is wrong comes as an exception; warnings are for us
    asked = [PROVIDERS[name] for name in providers]
    if CPU not in asked:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if asked != [CPU]:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # Where a provider fails, the runtime prints so and tries the CPU, unless it is forbidden.
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=[(name, SETTINGS.get(name, {})) for name in asked],
            enable_fallback=0,
        )
    except Exception as exc:  # the runtime has no base class for its errors
        raise _refused(path, exc) from exc
    real = session.get_providers()
    if real[: len(asked)] != asked:
        raise RuntimeUnavailableError(
            f"ONNX Runtime would run it on {', '.join(real)}, {', '.join(asked)} was asked for",
            fix="the provider's libraries could not be loaded: `lorkd doctor` shows the GPU",
        )
    return session


def _refused(path: Path, exc: Exception) -> ArtifactError:
    """Why ONNX Runtime doesn't load a model: one that is none, or has what it can't do."""
    said, kind = first_line(exc), type(exc).__name__
    damage = {"InvalidProtobuf", "NoModel", "NoSuchFile", "InvalidArgument", "UnicodeDecodeError"}
    if kind in damage:
        return ArtifactError(
            f"{path.name} is damaged or no model: {said}",
            where=path.parent,
            fix="run `lorkd export` again",
        )
    return ArtifactError(
        f"ONNX Runtime can't run this model: {with_nodes(said, path)}",
        where=path.parent,
        fix="run `lorkd export` again; if that fails too, choose another target",
    )


def _nodes_by_provider(session: onnxruntime.InferenceSession) -> dict[str, int] | None:
    """How many nodes of the optimised graph each provider runs; None where it can't be asked."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        return None
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


def _closed(*_: object) -> Any:
    raise RuntimeError("it is closed")
