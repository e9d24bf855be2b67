"""What TensorRT and TensorRT for RTX have in common: build from ONNX, load, run.

`trt` is the module of either. Networks are strongly typed: precision is what the ONNX model says,
on TensorRT 10, 11 and RTX alike. Running needs a GPU: this project's own tests run it over a
stand-in alone. It is written against the documented API (10.3 to 11.4.1, RTX 1.7).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import (
    OUTPUT,
    PROBABILITIES,
    Closing,
    EngineFiles,
    EngineSpec,
    LayerTime,
    Raw,
)
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import write_atomic
from lorkd_exporters._cuda import Device, gpus
from lorkd_exporters._layers import of_tensorrt
from lorkd_exporters._nodes import with_nodes

ENGINE = "model.engine"
COMPATIBLE = "model.version-compatible.engine"  # by which loading knows to allow its host code
LOG = "build.log"
FIRST = (OUTPUT, PROBABILITIES)  # the outputs that come before all others
LAYERS = "layers.json"
MIB = 2**20  # bytes
SMALLER = "end what else uses the GPU, or export it with a smaller --option max_batch=…"


class Options(Part):
    """What `--option` can say to both."""

    min_batch: int = Field(default=1, ge=1, description="smallest batch that it takes")
    opt_batch: int = Field(default=1, ge=1, description="the batch that it is tuned for")
    max_batch: int = Field(default=32, ge=1, description="largest batch that it takes at once")
    workspace: int | None = Field(default=None, ge=1, description="MiB the builder may use")
    level: int = Field(default=3, ge=0, le=5, description="how long the builder may search")
    tf32: bool = Field(
        default=False, description="fp32 with 10 bits of mantissa where it is faster"
    )
    raw: Raw = False

    @model_validator(mode="after")
    def _batches_are_in_order(self) -> Options:
        batches = (self.min_batch, self.opt_batch, self.max_batch)
        if list(batches) != sorted(batches):
            raise ValueError(
                f"min_batch {batches[0]}, opt_batch {batches[1]}, max_batch {batches[2]} "
                "are not in ascending order"
            )
        return self


Configure = Callable[[Any], None]  # sets in the builder's config what only one of the two has


def build(  # noqa: PLR0917
    trt: Any,
    onnx_path: Path,
    folder: Path,
    spec: EngineSpec,
    options: Options,
    configure: Configure,
    name: str = ENGINE,
    *,
    loads_here: bool,
) -> EngineFiles:
    """Write engine and build log to `folder`, and where the engine `loads_here` its layers as JSON.

    Raises `ArtifactError` with the builder's own words where it can't.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # The parser owns the weights until the engine is built, so it has to be held.
    network, _parser = _parsed(trt, builder, logger, onnx_path)
    network.name = spec.precision  # the only thing in an engine that its reader can ask for
    config = builder.create_builder_config()
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.add_optimization_profile(_profile(builder, network.get_input(0), options))
    configure(config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _failed(f"{trt.__name__} can't build the engine: {logger.worst}", onnx_path)
    write_atomic(folder / name, bytes(memoryview(engine)))
    write_atomic(folder / LOG, "\n".join([*logger.lines, ""]).encode())
    files = [name, LOG]
    if loads_here:
        write_atomic(folder / LAYERS, _information(trt, _loaded(trt, folder / name)).encode())
        files.append(LAYERS)
    facts = {"runtime": trt.__name__, "version": trt.__version__, "precision": spec.precision}
    return EngineFiles(tuple(files), facts | {"options": options.model_dump(mode="json")})


def _parsed(trt: Any, builder: Any, logger: Any, onnx_path: Path) -> tuple[Any, Any]:
    """The model as TensorRT's network, with the types that stand in it, and its parser."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):  # by content: the log gets no path
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        nodes = {" ".join(filter(None, (e.node_operator(), e.node_name()))) for e in errors}
        said = f"{', '.join(sorted(nodes))}: {logger.worst}"
        raise _failed(f"{trt.__name__} can't take this model: {said}", onnx_path)
    return network, parser


class TensorRtRunner(Closing):
    """A loaded engine on the first GPU: float32 `(N, 3, S, S)` → float32 logits `(N, K)`, or what
    `raw` makes of both.

    Batches above the engine's largest are run in parts; one below its smallest is filled up, so
    that an engine of a single batch size answers for any number of images.
    """

    def __init__(self, trt: Any, path: Path, threads: int) -> None:
        self._device = Device()
        try:
            self._engine = _loaded(trt, path)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise ArtifactError(
                    "the GPU has too little memory left for the engine", where=path, fix=SMALLER
                )
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            mode = trt.TensorIOMode.INPUT
            inputs = [name for name in names if self._engine.get_tensor_mode(name) == mode]
            outputs = [name for name in names if name not in inputs]
            kinds = {self._engine.get_tensor_dtype(name) for name in outputs}
            taken = {trt.float32: np.float32, trt.uint8: np.uint8}
            given = [self._engine.get_tensor_dtype(name) for name in inputs]
            if len(inputs) != 1 or given[0] not in taken or kinds != {trt.float32}:
                raise ArtifactError(f"this is no engine of a classifier: it has {', '.join(names)}")
            self._input, self._dtype = inputs[0], np.dtype(taken[given[0]])
            # TensorRT may order them as it likes: the logits come first.
            outputs.sort(key=lambda name: name not in FIRST)
            shapes = self._engine.get_tensor_profile_shape(self._input, 0)
            self._least, self._most = int(shapes[0][0]), int(shapes[2][0])
            self._shape = tuple(int(n) for n in shapes[2][1:])
            self._rest = {
                name: tuple(int(n) for n in self._engine.get_tensor_shape(name))[1:]
                for name in outputs
            }
            size = self._dtype.itemsize * int(np.prod(self._shape))
            self._from = self._device.allocate(self._most * size)
            self._to = {
                name: self._device.allocate(4 * self._most * int(np.prod(rest)))
                for name, rest in self._rest.items()
            }
            self._context.set_tensor_address(self._input, self._from)
            for name, address in self._to.items():
                self._context.set_tensor_address(name, address)
        except BaseException:
            self._device.close()
            raise
        self._open = True
        self.facts: dict[str, Any] = {
            "runtime": trt.__name__,
            "version": trt.__version__,
            "provider": gpus()[0].name,
            "precision": self._engine.name,
            "threads": threads,
        }

    def __call__(self, batch: Batch) -> F32:
        """Logits of `batch`; raises `ArtifactError` where the runtime refuses or fails."""
        first = next(iter(self._rest))
        return self._given(batch, [first])[first]

    def outputs(self, batch: Batch) -> dict[str, F32]:
        """Every output of `batch` by name, the logits first; raises as a call does."""
        return self._given(batch, list(self._rest))

    def _given(self, batch: Batch, names: list[str]) -> dict[str, F32]:
        fits = batch.dtype == self._dtype and batch.shape[1:] == self._shape
        if not self._open or not fits or not len(batch):
            takes = f"it takes {self._dtype} (N, *{self._shape})"
            what = takes if self._open else "it is closed"
            raise ArtifactError(f"the engine failed on {batch.dtype} {batch.shape}: {what}")
        self._device.use()
        data: Any = np.ascontiguousarray(batch)
        starts = range(0, len(data), self._most)
        parts = [self._part(data[i : i + self._most], names) for i in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _part(self, part: Batch, names: list[str]) -> dict[str, F32]:
        count = len(part)
        if count < self._least:
            part = np.concatenate([part, np.zeros((self._least - count, *self._shape), part.dtype)])
        ready = self._context.set_input_shape(self._input, part.shape)
        self._device.upload(self._from, part)
        if not ready or not self._context.execute_async_v3(self._device.stream):
            raise ArtifactError(f"the engine failed on {part.dtype} {part.shape}")
        return {
            name: self._device.download(self._to[name], (len(part), *self._rest[name]))[:count]
            for name in names
        }

    def layers(self, trt: Any, batch: Batch, calls: int) -> list[LayerTime]:
        """Where the time of `calls` calls goes; the documented API, not run by us on a GPU."""
        times: dict[str, list[float]] = {}

        class Times(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(float(ms))

        profiler = self._context.profiler = Times()
        for _ in range(calls):
            self(batch)  # which tells the profiler before it ends: `enqueue_emits_profile`
        del profiler  # held until then: the context may not
        return of_tensorrt(_information(trt, self._engine), times)

    def allocated(self) -> int:
        """Bytes on the GPU that TensorRT and the buffers hold, the weights left out, of which
        it doesn't tell."""
        size = getattr(self._engine, "device_memory_size_v2", None)
        held = int(self._engine.device_memory_size if size is None else size)
        values = sum(int(np.prod(shape)) for shape in self._rest.values())
        taken = self._dtype.itemsize * int(np.prod(self._shape))
        return held + self._most * (taken + 4 * values)

    def close(self) -> None:
        """Free the GPU's memory; calling the runner after this raises `ArtifactError`."""
        if self._open:
            self._open = False
            self._device.use()
            del self._context, self._engine
            self._device.close()


def _profile(builder: Any, tensor: Any, options: Options) -> Any:
    profile = builder.create_optimization_profile()
    rest = tuple(tensor.shape)[1:]
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    return profile


def _loaded(trt: Any, path: Path) -> Any:
    """The engine of a file. Raises `ArtifactError` for one that is damaged or of another GPU."""
    logger = _logger(trt)
    runtime = trt.Runtime(logger)
    if path.name == COMPATIBLE:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ArtifactError(
            f"{trt.__name__} can't load the engine: {logger.worst}",
            where=path,
            fix="an engine runs on the GPU and version that it was built for: run `lorkd export` "
            "on this device",
        )
    return engine


def _information(trt: Any, engine: Any) -> str:
    """The engine's layers as JSON."""
    inspector = engine.create_engine_inspector()
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text


def _logger(trt: Any) -> Any:
    """Collects what the library says, from INFO on; `worst` is its first error."""

    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.worst = "it gives no reason"

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.INFO:
                self.lines.append(f"{severity.name}: {text}")
            if severity <= trt.ILogger.ERROR and self.worst == "it gives no reason":
                self.worst = " ".join(text.split())[:400]

    return Lines()


def _failed(what: str, onnx_path: Path) -> ArtifactError:
    return ArtifactError(
        with_nodes(what, onnx_path),
        fix="choose another --precision, or another target; `lorkd doctor` shows what is here",
    )
