"""A folder for KServe: each engine as an inference service on MLServer, in a pod of its own.

    REPOSITORY/
      servingruntime.yaml       MLServer with this package, for the cluster once
      TASK/                     what goes to the storage: a folder as the layout `mlserver` has it,
        model-settings.json     with the server's settings in it
        settings.json
        engine/
        inferenceservice.yaml   what goes to the cluster

Written after KServe's resources `ServingRuntime` (v1alpha1) and `InferenceService` (v1beta1). Not
run by us: there is no cluster here. What is in the pod,
`tests/deploy/servers/test_servers.py` runs.
"""

from __future__ import annotations

from typing import Any

import yaml

from lorkd_deploy._version import __version__
from lorkd_deploy.deploy.programs import mlserver
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.errors import ArtifactError

RUNTIME = "lorkd-mlserver"
FORMAT = "lorkd"
MODELS = "/mnt/models"  # where KServe puts what the storage holds
START = "kubectl apply --filename {}/servingruntime.yaml"


def service_name(task: str) -> str:
    """A task's name as a service's, which is a label of DNS.

    Raises `ArtifactError` for a name that begins with a digit, which a service's may not.
    """
    if task[0].isdigit():
        raise ArtifactError(
            f"{task}: KServe wants a service's name to begin with a letter",
            fix="--layout mlserver has the same without a service, or rename the task",
        )
    return task.replace("_", "-").rstrip("-")


def files(model: ServedModel) -> dict[str, bytes]:
    """What a model needs beside its engine's own files, by path; raises as `service_name` does."""
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service_name(model.name)},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": FORMAT},
                    "protocolVersion": "v2",
                    "runtime": RUNTIME,
                    "storageUri": f"pvc://models/{model.name}",
                }
            }
        },
    }
    beside = "# Copy this folder to your storage, and say here where: s3://, gs://, pvc://…\n"
    return {
        **mlserver.files(model),
        **mlserver.shared(host="0.0.0.0"),  # of the pod: the cluster decides who reaches it
        "inferenceservice.yaml": beside.encode() + _yaml(service),
    }


def shared() -> dict[str, bytes]:
    """What the cluster needs once. The image is the user's: Python with this package in it."""
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": RUNTIME},
        "spec": {
            "supportedModelFormats": [{"name": FORMAT, "version": "1", "autoSelect": True}],
            "protocolVersions": ["v2"],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": f"{RUNTIME}:{__version__}",
                    "command": ["mlserver", "start", MODELS],
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "resources": {
                        "requests": {"cpu": "1", "memory": "1Gi"},
                        "limits": {"cpu": "1", "memory": "1Gi"},
                    },
                }
            ],
        },
    }
    return {"servingruntime.yaml": _yaml(runtime)}


def _yaml(value: Any) -> bytes:
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text.encode()
