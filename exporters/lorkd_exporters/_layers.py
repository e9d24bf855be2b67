"""Where an engine's time goes, from what its runtime tells of its own layers."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorkd_deploy.runtime import LayerTime

_KERNEL = "_kernel_time"  # how ONNX Runtime's profile calls a node's own time
_PRECISIONS = {  # the coarsest first, by the names of all runtimes
    "uint8": "int8",
    "int8": "int8",
    "i8": "int8",
    "u8": "int8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp16": "fp16",
    "f16": "fp16",
    "half": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "float32": "fp32",
    "f32": "fp32",
}


def of_onnxruntime(profile: Path) -> list[LayerTime]:
    """Each node of the profile that a session of ONNX Runtime wrote, in the order of running."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in json.loads(profile.read_bytes()):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            found.setdefault(event["name"].removesuffix(_KERNEL), []).append(event)
    return [
        LayerTime(
            name,
            runs[0]["args"]["op_name"],
            _precision(k for shape in runs[0]["args"].get("input_type_shape", ()) for k in shape),
            statistics.median(run["dur"] for run in runs) / 1e3,
        )
        for name, runs in found.items()
    ]


def of_openvino(calls: Iterable[Sequence[Any]]) -> list[LayerTime]:
    """Each node that was executed, of the performance counters of several calls."""
    found: dict[str, list[Any]] = {}
    for nodes in calls:
        for node in nodes:
            if node.status == node.Status.EXECUTED:
                found.setdefault(node.node_name, []).append(node)
    return [
        LayerTime(
            name,
            runs[0].node_type,
            _precision([runs[0].exec_type.rpartition("_")[2].lower()]),
            statistics.median(run.real_time.total_seconds() for run in runs) * 1e3,
        )
        for name, runs in found.items()
    ]


def of_tensorrt(information: str, times: Mapping[str, Sequence[float]]) -> list[LayerTime]:
    """Each layer that TensorRT's profiler timed, ms, with what the engine's inspector says of it.

    Written against the documented JSON of engines with detailed verbosity, whose tensors say e.g.
    `Thirty-two wide channel vectorized row major Int8 format`; not run by us on a GPU.
    """
    layers = json.loads(information)["Layers"]
    known = {layer["Name"]: layer for layer in layers if isinstance(layer, dict)}
    return [
        LayerTime(
            name,
            known.get(name, {}).get("LayerType", ""),
            _precision(
                word
                for tensor in known.get(name, {}).get("Inputs", ())
                for word in re.findall(r"[a-z0-9]+", tensor.get("Format/Datatype", "").lower())
            ),
            statistics.median(runs),
        )
        for name, runs in times.items()
    ]


def _precision(kinds: Iterable[str]) -> str:
    """What a layer computes in, of the types that it is given."""
    given = set(kinds)
    return next((short for kind, short in _PRECISIONS.items() if kind in given), "other")
