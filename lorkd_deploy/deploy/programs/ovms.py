"""A model repository for the OpenVINO Model Server (OVMS), which runs OpenVINO's engines itself.

    REPOSITORY/
      config.json     every model that lies here
      TASK/
        labels.txt    one line per column of the logits
        1/            the engine's folder as it was exported

Written after the server's documentation of its configuration. Not run by us: no registry has it.
The client preprocesses, as `1/artifact.json` says, and gets logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.deploy.programs.triton import LABELS, labels
from lorkd_deploy.errors import ArtifactError

CONFIG = "config.json"
MODELS = "/models"  # where the command mounts the repository
START = (
    "docker run --rm --publish 127.0.0.1:9000:9000 --publish 127.0.0.1:8000:8000 "
    f'--volume "$(realpath {{}})":{MODELS}:ro openvino/model_server:latest '
    f"--config_path {MODELS}/{CONFIG} --port 9000 --rest_port 8000"
)
# The arithmetic that was proven, on one thread.
_PLUGIN = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}


def files(model: ServedModel) -> dict[str, bytes]:
    """What a model needs beside its engine's own files, by path.

    Raises `ArtifactError` for an engine that isn't float32's on the CPU: one configuration has all.
    """
    artifact = model.artifact
    if not artifact.on_the_cpu or artifact.precision == "bf16":
        raise ArtifactError(
            f"the configuration is for float32 arithmetic on the CPU, and {artifact.name} is for "
            "another",
            where=artifact.folder,
            fix="export it without --option device, as fp32, fp16 or int8",
        )
    return {LABELS: labels(artifact).encode()}


def index(names: Sequence[str]) -> dict[str, bytes]:
    """The server's configuration of all models."""
    models = [
        {
            "config": {
                "name": name,
                "base_path": f"{MODELS}/{name}",
                "target_device": "CPU",
                "plugin_config": _PLUGIN,
            }
        }
        for name in names
    ]
    return {CONFIG: json.dumps({"model_config_list": models}, indent=2).encode() + b"\n"}
