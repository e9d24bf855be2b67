"""A folder for MLServer: each engine with its preprocessing, probabilities and guard.

    REPOSITORY/
      settings.json           the server's: on this machine alone, and how large a request may be
      TASK/
        model-settings.json   what the server tells of the model, and what runs it
        engine/               the engine's folder as it was exported, and its model step

Written after MLServer's documentation of its settings;
`tests/deploy/servers/test_servers.py` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorkd_deploy.deploy.answers.model_step import LABEL, Tensor, inputs, outputs, step_files
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.runtime import PROBABILITIES

ENGINE = "engine"
RUNTIME = "lorkd_deploy.deploy.servers.mlserver.Engine"
LARGEST_MIB = 64  # of a request by gRPC, whose own limit is 4


def files(model: ServedModel) -> dict[str, bytes]:
    """What a model needs beside its engine's own files, by path."""
    artifact = model.artifact
    settings = {
        "name": model.name,
        "implementation": RUNTIME,
        "platform": f"lorkd_{artifact.target}",
        "versions": [artifact.files[0].sha256],
        "inputs": [_described(tensor) for tensor in inputs()],
        "outputs": [
            _described(tensor, model) for tensor in outputs(artifact, guarded=model.guarded)
        ],
        "parameters": {"uri": f"./{ENGINE}", "extra": {"threads": 1}},
    }
    beside = {f"{ENGINE}/{name}": data for name, data in step_files(artifact, model.bundle).items()}
    return {"model-settings.json": _json(settings), **beside}


def shared(host: str = "127.0.0.1") -> dict[str, bytes]:
    """The server's own settings. Without workers it answers in one process, whose threads share
    the engines; only this machine can reach it, unless `host` is another address.
    """
    settings = {
        "debug": False,
        "host": host,
        "http_port": 8080,
        "grpc_port": 8081,
        "metrics_port": 8082,
        "parallel_workers": 0,
        "grpc_max_message_length": LARGEST_MIB * 2**20,
    }
    return {"settings.json": _json(settings)}


def _described(tensor: Tensor, model: ServedModel | None = None) -> dict[str, Any]:
    """A tensor as a model's settings have it; what stands in its columns, for a client to read."""
    described: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if model is not None and tensor.name in (PROBABILITIES, LABEL):
        tasks = {task.name: list(task.classes) for task in model.artifact.tasks}
        columns = tasks if tensor.name == PROBABILITIES else list(tasks)
        described["parameters"] = {"columns": json.dumps(columns, ensure_ascii=False)}
    return described


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
