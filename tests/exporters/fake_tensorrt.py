"""TensorRT and the CUDA driver without a GPU, so that the code over them is run at all.

An "engine" file is an ONNX model, run by ONNX Runtime; the GPU's memory is this process's. Only
what the documented API has is here: a call of anything else, or with other arguments, fails. It
says nothing of whether the real libraries behave like this. The builder is `fake_tensorrt_builder`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lorkd_exporters import _cuda

from tests.exporters import fake_tensorrt_builder as building
from tests.exporters.fake_tensorrt_builder import HOST_CODE, NOTE, Builder, Inspector

# What an engine says of itself that `engine_file` wrote; `batches`: smallest, best and largest.
PLAIN = {"name": "fp32", "batches": (1, 2, 2), "layers": []}


class Driver:
    """The calls of libcuda that are used, over memory of this process."""

    def __init__(self) -> None:
        self.alive: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        known = {"cuInit", "cuDeviceGet", "cuCtxSetCurrent", "cuStreamSynchronize"}
        known |= {"cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"}
        if name not in known:
            raise AttributeError(name)
        self.calls.append(name)
        return lambda *_: 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Fake"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 1
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 7
        return 0

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(memory)
        self.alive[pointer._obj.value] = memory
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:  # noqa: N802
        del self.alive[pointer.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        return self.cuMemcpyHtoD_v2(to, source, size)

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        return self.cuMemcpyDtoH_v2(to, source, size)

    def cuMemcpyHtoD_v2(self, to: Any, source: Any, size: Any) -> int:  # noqa: N802
        assert size.value <= len(self.alive[to.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, to: Any, source: Any, size: Any) -> int:  # noqa: N802
        assert size.value <= len(self.alive[source.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0


class TensorIOMode:
    NONE, INPUT, OUTPUT = "none", "in", "out"


class Engine:
    """`ICudaEngine`, of one input and one output."""

    num_io_tensors = 2
    memory_left = True

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Node by node: the CPU's fused int8 kernels overflow where it has no VNNI, a GPU doesn't.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        cpu = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model, options, providers=cpu)
        noted = self.session.get_modelmeta().custom_metadata_map.get(NOTE)
        self.note = PLAIN if noted is None else json.loads(noted)
        self.name = self.note["name"]
        self.sides = {self.session.get_outputs()[0].name: self.session.get_outputs()[0]}
        self.sides |= {self.session.get_inputs()[0].name: self.session.get_inputs()[0]}

    def get_tensor_name(self, index: int) -> str:
        return list(self.sides)[index]  # the output first: an order that nothing promises

    def get_tensor_mode(self, name: str) -> str:
        output = name == self.session.get_outputs()[0].name
        return TensorIOMode.OUTPUT if output else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> str:
        return {"tensor(float)": "float32", "tensor(uint8)": "uint8"}[self.sides[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.sides[name].shape[1:])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [(batch, *self.sides[name].shape[1:]) for batch in self.note["batches"]]

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.note["layers"])

    def create_execution_context(self) -> Context | None:
        return Context(self) if self.memory_left else None


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        least, _, most = self.engine.note["batches"]
        return bool(least <= shape[0] <= most)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        session = self.engine.session
        given, wanted = session.get_inputs()[0].name, session.get_outputs()[0].name
        kind = np.dtype(self.engine.get_tensor_dtype(given))
        size = kind.itemsize * int(np.prod(self.shape))
        memory = (ctypes.c_char * size).from_address(self.addresses[given])
        batch = np.frombuffer(memory, kind).reshape(self.shape)
        logits = np.ascontiguousarray(session.run([wanted], {given: batch})[0])
        ctypes.memmove(self.addresses[wanted], logits.ctypes.data, logits.nbytes)
        for place, layer in enumerate(self.engine.note["layers"]):
            if self.profiler is not None:
                self.profiler.report_layer_time(layer["Name"], 0.25 * (place + 1))
        return True


class IProfiler:
    """`IProfiler`."""


class Runtime:
    """`IRuntime`; an engine with host code has to be allowed."""

    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        code = serialized_engine.startswith(HOST_CODE)
        if code and not self.engine_host_code_allowed:
            return None
        try:
            engine = Engine(serialized_engine.removeprefix(HOST_CODE))
        except Exception:  # ONNX Runtime's errors have no base class
            self.logger.log(Logger.ERROR, "the engine's header is not one of TensorRT")
            return None
        return engine


class Logger:
    """`ILogger` and `Logger`."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = building.Severity

    def __init__(self, min_severity: int = WARNING) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        pass


def module(version: str = "10.3.0") -> Any:
    """What `import tensorrt` gives."""
    tensorrt: Any = ModuleType("tensorrt")
    tensorrt.__version__ = version
    tensorrt.float32, tensorrt.uint8 = "float32", "uint8"
    for kind in (TensorIOMode, Runtime, Logger, Builder, IProfiler, building.OnnxParser):
        setattr(tensorrt, kind.__name__, kind)
    for name in ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType"):
        setattr(tensorrt, name, getattr(building, name))
    for name in ("ProfilingVerbosity", "LayerInformationFormat"):
        setattr(tensorrt, name, getattr(building, name))
    tensorrt.ILogger = Logger
    return tensorrt


def installed(monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0") -> Driver:
    """A GPU's driver and the TensorRT that `import tensorrt` finds, for one test."""
    driver = Driver()
    monkeypatch.setitem(sys.modules, "tensorrt", module(version))
    monkeypatch.setattr(_cuda, "_driver", lambda: driver)
    return driver


def engine_file(model: bytes, file: Path, *, host_code: bool = False) -> Path:
    """Write an engine that the fake runtime loads."""
    file.write_bytes(HOST_CODE * host_code + model)
    return file
