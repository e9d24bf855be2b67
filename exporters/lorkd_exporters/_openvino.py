"""An open OpenVINO engine, and what OpenVINO's errors say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import Closing

if TYPE_CHECKING:
    import openvino  # type: ignore[import-untyped]

COPIED = 256 * 2**10  # bytes of a batch up to which copying it is cheaper than binding it


class OpenVinoRunner(Closing):
    """A compiled model: float32 `(N, 3, S, S)` → float32 logits `(N, K)`, or what `raw` makes of
    both."""

    def __init__(
        self, compiled: openvino.CompiledModel, facts: dict[str, Any], cache: Path | None = None
    ) -> None:
        kinds = [v.get_element_type().get_type_name() for v in compiled.inputs + compiled.outputs]
        fits = kinds[:1] in (["f32"], ["u8"]) and set(kinds[1:]) == {"f32"}
        if len(compiled.inputs) != 1 or not compiled.outputs or not fits:
            raise ArtifactError(
                f"this model is no engine: it maps {len(compiled.inputs)} tensors to "
                f"{len(compiled.outputs)} ({', '.join(kinds)}), a float32 or uint8 one to a "
                "float32 one is needed"
            )
        import openvino

        self._tensor: Callable[..., Any] = openvino.Tensor
        self._request: Any = compiled.create_infer_request()
        self._names = [value.get_any_name() for value in compiled.outputs]
        shapes = [value.get_partial_shape() for value in compiled.outputs]
        self._rest = [tuple(n.get_length() for n in list(shape)[1:]) for shape in shapes]
        self._shape: tuple[int, ...] = ()  # the batch that the two arrays are bound for
        self._dtype = np.dtype(np.uint8 if kinds[0] == "u8" else np.float32)
        self._input: Batch | None = None
        self._output: list[F32] = []
        self.facts = facts
        self.cache = cache

    def __call__(self, batch: Batch) -> F32:
        """Logits of `batch`; raises `ArtifactError` where the runtime refuses or fails."""
        self._infer(batch)
        return self._output[0].copy()

    def outputs(self, batch: Batch) -> dict[str, F32]:
        """Every output of `batch` by name; raises as a call does."""
        self._infer(batch)
        return {name: o.copy() for name, o in zip(self._names, self._output, strict=True)}

    def _infer(self, batch: Batch) -> None:
        """Fill the arrays of the outputs."""
        try:
            if batch.dtype != self._dtype:  # which OpenVINO would convert without a word
                raise TypeError(f"{self._dtype} is needed")
            if self._request is None:
                raise RuntimeError("it is closed")
            if batch.shape != self._shape:
                self._bind(batch.shape)
            if self._input is not None:
                np.copyto(self._input, batch)
            else:
                # Held by this name until the answer is there: the tensor doesn't keep its array.
                bound = np.require(batch, requirements=["C", "W"])
                self._request.set_input_tensor(self._tensor(bound, shared_memory=True))
            self._request.infer(share_outputs=True)
        except Exception as exc:  # the binding raises what it likes
            raise ArtifactError(
                f"the engine failed on {batch.dtype} {batch.shape}: {said(exc)}"
            ) from exc

    def _bind(self, shape: tuple[int, ...]) -> None:
        """Let the request read and write arrays of ours, which are there for every call of one
        shape: `infer([batch])` looks at what it is given and makes arrays of what it gives, 0.1 ms
        a call, and binding afresh costs a quarter of that. A batch above `COPIED` isn't copied,
        unless OpenVINO takes no such array: one that can't be written to, or isn't contiguous.
        """
        self._shape = ()
        small = self._dtype.itemsize * int(np.prod(shape)) <= COPIED
        self._input = np.empty(shape, self._dtype) if small else None
        self._output = [np.empty((shape[0], *rest), np.float32) for rest in self._rest]
        if self._input is not None:
            self._request.set_input_tensor(self._tensor(self._input, shared_memory=True))
        for place, output in enumerate(self._output):
            self._request.set_output_tensor(place, self._tensor(output, shared_memory=True))
        self._shape = shape

    def close(self) -> None:
        """Free the model; calling the runner after this raises `ArtifactError`."""
        self._request = None


def said(exc: Exception) -> str:
    """The last line of an OpenVINO error: those above name its source files."""
    lines = [line.strip(" -") for line in str(exc).splitlines() if line.strip()]
    return (lines or [type(exc).__name__])[-1][:300]
