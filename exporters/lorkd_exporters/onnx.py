"""ONNX Runtime: the fused ONNX model is the engine.

Threads are pinned, since the runtime would take the host's count and not the container's
(onnxruntime#8313), and the provider is named, since it would fall back to another silently.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError
from lorkd_deploy.runtime import (
    F32,
    EngineFiles,
    EngineSpec,
    NoOptions,
    Probe,
    RunOptions,
    engine_path,
    first_line,
    parse_options,
    require_precision,
)

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

MODEL = "model.onnx"
PROVIDER = "CPUExecutionProvider"
PRECISIONS = ("fp32", "fp16", "int8")
INSTALL = "python -m pip install 'lorkd-deploy[onnx]'"


def probe() -> Probe:
    """Whether ONNX Runtime is here and has its CPU provider."""
    try:
        import onnxruntime
    except ImportError as exc:
        missing = isinstance(exc, ModuleNotFoundError)
        reason = "onnxruntime is not installed" if missing else f"onnxruntime is broken: {exc}"
        return Probe(False, False, None, reason=reason, fix=INSTALL)
    version: str = onnxruntime.__version__
    if PROVIDER not in onnxruntime.get_available_providers():
        return Probe(False, False, version, reason=f"it was built without {PROVIDER}", fix=INSTALL)
    return Probe(True, True, version, PRECISIONS, converted=PRECISIONS[1:])


def export(onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
    """Take the model as it is, in its precision; raises `RuntimeUnavailableError` for another."""
    require_precision("onnx", spec.precision, probe())
    parse_options("onnx", NoOptions, spec.options)
    shutil.copyfile(onnx_path, folder / MODEL)
    return EngineFiles((MODEL,))


def open(folder: Path, files: Sequence[str], options: RunOptions) -> OnnxRunner:
    """Load `files[0]` on the CPU with `options.threads` threads.

    Raises `ArtifactError` for a missing or damaged model, `RuntimeUnavailableError` where ONNX
    Runtime can't run here.
    """
    found = probe()
    if not found.can_run:
        raise RuntimeUnavailableError(f"onnx can't run here: {found.reason}", fix=found.fix)
    parse_options("onnx", NoOptions, options.options)
    session = _session(engine_path(folder, files[0]), options.threads)
    return OnnxRunner(session, options.threads)


class OnnxRunner:
    """A loaded model: float32 `(N, 3, S, S)` → float32 logits `(N, K)`."""

    def __init__(self, session: onnxruntime.InferenceSession, threads: int) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        kinds = [value.type for value in (*inputs, *outputs)]
        if kinds != ["tensor(float)", "tensor(float)"]:
            raise ArtifactError(
                f"this model is no engine: it maps {len(inputs)} tensors to {len(outputs)} "
                f"({', '.join(kinds)}), a float32 one to a float32 one is needed"
            )
        self._run: Callable[..., Any] = session.run
        self._input: str = inputs[0].name
        self._outputs = [outputs[0].name]
        self.facts: dict[str, Any] = {
            "runtime": "onnxruntime",
            "version": probe().version,
            "provider": session.get_providers()[0],
            "precision": session.get_modelmeta().custom_metadata_map.get("lorkd.precision", "fp32"),
            "threads": threads,
        }

    def __call__(self, batch: F32) -> F32:
        """Logits of `batch`; raises `ArtifactError` where the runtime refuses or fails."""
        try:
            logits: F32 = self._run(self._outputs, {self._input: batch})[0]
        except Exception as exc:  # the runtime has no base class for its errors
            raise ArtifactError(
                f"the engine failed on {batch.dtype} {batch.shape}: {first_line(exc)}"
            ) from exc
        return logits

    def close(self) -> None:
        """Free the model; calling the runner after this raises `ArtifactError`."""
        self._run = _closed

    def __enter__(self) -> OnnxRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # operators one after the other: these networks are chains
    options.log_severity_level = 3  # what is wrong comes as an exception; warnings are for us
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as exc:  # the runtime has no base class for its errors
        raise ArtifactError(
            f"{path.name} is damaged or no model: {first_line(exc)}",
            where=path.parent,
            fix="run `lorkd export` again",
        ) from exc


def _closed(*_: object) -> Any:
    raise RuntimeError("it is closed")
