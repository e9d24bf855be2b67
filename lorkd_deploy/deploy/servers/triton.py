"""Triton's side of a model step: a model of its Python backend.

`lorkd export --layout triton-python` writes a `model.py` that names `TritonPythonModel`. It is
imported by nothing else: the module that it needs is the backend's own and exists only there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as backend

from lorkd_deploy.deploy.answers.model_step import ModelStep
from lorkd_deploy.errors import ImageError, LorkdError
from lorkd_deploy.runtime import IMAGE


class TritonPythonModel:
    """One engine of one task, as the server's backend calls it; errors become the request's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the engine in the version's folder, on as many threads as its parameters say."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        self._step = ModelStep(folder, threads=int(parameters["threads"]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order; each is a batch of its own."""
        return [self._answered(request) for request in requests]

    def finalize(self) -> None:
        """Free the engine; the server calls it after the last request."""
        self._step.close()

    def _answered(self, request: Any) -> Any:
        images = backend.get_input_tensor_by_name(request, IMAGE).as_numpy()
        try:
            found = self._step(images)
        except ImageError as exc:
            return _refused(exc, backend.TritonError.INVALID_ARG)
        except LorkdError as exc:
            return _refused(exc, backend.TritonError.INTERNAL)
        asked = request.requested_output_names()
        tensors = [backend.Tensor(name, found[name]) for name in found if name in asked]
        return backend.InferenceResponse(tensors)


def _refused(exc: LorkdError, code: Any) -> Any:
    return backend.InferenceResponse(error=backend.TritonError(str(exc), code))
