"""TensorRT's builder without a GPU: what it "builds" is the ONNX model, with what was asked of it.

The other half of `fake_tensorrt`, with the same rule: a call that isn't documented fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import onnx

HOST_CODE = b"host code:"
NOTE = "fake.engine"  # in the model's metadata: what the engine says of itself
LACKS = ("Det",)  # operators that this TensorRT doesn't have
FAULT: str | None = None  # why it can't build
last_build: dict[str, Any] = {}  # what was last built with


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32, VERSION_COMPATIBLE = range(2)


class MemoryPoolType(IntEnum):
    WORKSPACE, TACTIC_DRAM = range(2)


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(IntEnum):
    ONELINE, JSON = range(2)


class Tensor:
    """`ITensor`."""

    def __init__(self, value: Any) -> None:
        self.name = value.name
        self.shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)


class Network:
    """`INetworkDefinition`, filled by the parser."""

    def __init__(self) -> None:
        self.name = ""
        self._model = onnx.ModelProto()

    def get_input(self, index: int) -> Tensor:
        return Tensor(self._model.graph.input[index])


class ParserError:
    """`ParserError`."""

    def __init__(self, operator: str, name: str) -> None:
        self._operator, self._name = operator, name

    def node_operator(self) -> str:
        return self._operator

    def node_name(self) -> str:
        return self._name


class OnnxParser:
    """`OnnxParser`."""

    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        self._network._model = onnx.load_from_string(model)
        self._read_as_signed(self._network._model.graph)
        for node in self._network._model.graph.node:
            if node.op_type in LACKS:
                self._errors.append(ParserError(node.op_type, node.name))
                self._logger.log(Severity.ERROR, f"no importer for {node.op_type}")
        return not self._errors

    def _read_as_signed(self, graph: Any) -> None:
        """What TensorRT makes of UINT8, with these words: half of the range is lost."""
        unsigned, signed = onnx.TensorProto.UINT8, onnx.TensorProto.INT8
        for value in graph.value_info:
            if value.type.tensor_type.elem_type == unsigned:
                value.type.tensor_type.elem_type = signed
        for entry in graph.initializer:
            if entry.data_type == unsigned:
                entry.data_type = signed
                said = "UINT8 zero_point only on DLA. Defaulting to INT8 instead"
                self._logger.log(Severity.WARNING, f"TensorRT supports {said}")


class Profile:
    """`IOptimizationProfile`, of one input."""

    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None:
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class Config:
    """`IBuilderConfig`; a setting that it doesn't have can't be set."""

    __slots__ = (
        "_flags",
        "_pools",
        "_profiles",
        "builder_optimization_level",
        "profiling_verbosity",
    )

    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self._flags = {BuilderFlag.TF32}
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[Profile] = []

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder:
    """`Builder`."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        model, log = network._model, self._logger.log
        (profile,) = config._profiles
        ((name, shapes),) = profile._shapes.items()
        assert name == network.get_input(0).name
        if FAULT is not None:
            log(Severity.ERROR, FAULT)
            return None
        inputs = [{"Name": "any", "Format/Datatype": "Row major linear FP32"}]
        layers = [
            {"Name": node.output[0], "LayerType": node.op_type, "Inputs": inputs}
            for node in model.graph.node
        ]
        for layer in layers:
            log(Severity.INFO, f"[GpuLayer] {layer['Name']}")
        log(Severity.VERBOSE, "Tactic 0x1 is the fastest")
        last_build.update(
            {
                "flags": {flag.name for flag in config._flags},
                "pools": {pool.name: size for pool, size in config._pools.items()},
                "level": config.builder_optimization_level,
                "profile": [shape[0] for shape in shapes],
            }
        )
        detailed = config.profiling_verbosity == ProfilingVerbosity.DETAILED
        note = {
            "name": network.name,
            "batches": [shape[0] for shape in shapes],
            "layers": layers if detailed else [layer["Name"] for layer in layers],
        }
        model.metadata_props.add(key=NOTE, value=json.dumps(note))
        code = HOST_CODE if BuilderFlag.VERSION_COMPATIBLE in config._flags else b""
        return code + model.SerializeToString()


class Inspector:
    """`EngineInspector`."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        return json.dumps({"Layers": self._layers, "Bindings": []})
