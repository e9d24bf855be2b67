"""MLServer's side of a model step: requests of the open inference protocol to and from arrays.

`lorkd export --layout mlserver` names `Engine` in each model's settings; nothing else imports this.
It needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlserver import MLModel
from mlserver.errors import InferenceError, MLServerError
from mlserver.types import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    ResponseOutput,
)
from mlserver.utils import get_model_uri

from lorkd_deploy.arrays import U8
from lorkd_deploy.deploy.answers.model_step import ModelStep
from lorkd_deploy.errors import ImageError, LorkdError
from lorkd_deploy.runtime import IMAGE


class Engine(MLModel):
    """One engine of one task. A reload opens the new engine before the old one is let go, and
    requests that the old one had begun are answered by it: it is freed with the last of them.
    """

    async def load(self) -> bool:
        """Open the engine below `parameters.uri`, on `parameters.extra.threads` threads."""
        folder = Path(await get_model_uri(self.settings))
        extra = (self.settings.parameters.extra if self.settings.parameters else None) or {}
        try:
            self._step = await asyncio.to_thread(
                ModelStep, folder, threads=int(extra.get("threads", 1))
            )
        except LorkdError as exc:
            raise MLServerError(str(exc), 500) from exc
        self._origin = Parameters(engine_sha256=self._step.artifact.files[0].sha256)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request; a fault of the request is an error 400 of the protocol."""
        asked = [output.name for output in payload.outputs or ()]
        if unknown := set(asked) - {output.name for output in self._step.tensors}:
            raise InferenceError(f"there is no output {', '.join(sorted(unknown))}")
        try:
            found = await asyncio.to_thread(self._answered, payload)
        except ImageError as exc:
            raise InferenceError(str(exc)) from exc
        except LorkdError as exc:
            raise MLServerError(str(exc), 500) from exc
        outputs = [
            _encoded(tensor.name, tensor.datatype, found[tensor.name])
            for tensor in self._step.tensors
            if not asked or tensor.name in asked
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs, parameters=self._origin)

    def _answered(self, payload: InferenceRequest) -> Any:
        return self._step(images_of(payload.inputs))


def images_of(given: list[RequestInput]) -> U8:
    """The images of a request; raises `ImageError` unless it holds exactly what it announces."""
    names = [entry.name for entry in given]
    if names != [IMAGE]:
        raise ImageError(f"the inputs are {names}, one named {IMAGE} is needed")
    (entry,) = given
    kind = getattr(entry.datatype, "value", entry.datatype)
    if kind != Datatype.UINT8.value:
        raise ImageError(f"{IMAGE} is {kind}, UINT8 is needed", fix="send pixels of 0 to 255")
    shape = tuple(entry.shape)
    values = _flat(getattr(entry.data, "root", entry.data))
    if min(shape, default=0) < 1 or math.prod(shape) != len(values):
        raise ImageError(
            f"{IMAGE} announces the shape {list(shape)} and holds {len(values)} values"
        )
    return values.reshape(shape)


def _flat(data: Any) -> U8:
    """Whole numbers of 0 to 255, in lists of any depth."""
    try:
        values: npt.NDArray[Any] = np.asarray(data).reshape(-1)
    except ValueError as exc:  # lists of several lengths
        raise ImageError(f"{IMAGE} is no array: {exc}") from exc
    whole = values.dtype.kind in "iu" and (
        not values.size or (0 <= values.min() <= values.max() <= 255)
    )
    if not whole:
        raise ImageError(f"{IMAGE} holds values that aren't whole numbers of 0 to 255")
    return values.astype(np.uint8)


def _encoded(name: str, datatype: str, values: npt.NDArray[Any]) -> ResponseOutput:
    flat, parameters = values.reshape(-1).tolist(), None
    if datatype == "BYTES":
        flat, parameters = [text.encode() for text in flat], Parameters(content_type="str")
    return ResponseOutput(
        name=name,
        shape=list(values.shape),
        datatype=Datatype(datatype),
        data=flat,
        parameters=parameters,
    )
