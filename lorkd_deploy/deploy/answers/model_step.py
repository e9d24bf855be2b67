"""What a server runs for one engine: uint8 images in, calibrated probabilities and guard out.

    ENGINE'S FOLDER/      as it was exported: the engine's files and artifact.json, and beside them
      step.json           what of the bundle the answers need
      guard.safetensors   what the guard compares with, where the bundle has one

The folder needs neither bundle nor run, so it can be copied to the server. `servers/` lets servers
call it; they know nothing of images, and it knows nothing of requests.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import U8
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.answers.answering import OUTSIDE, label_of, probabilities_of, scores_of
from lorkd_deploy.deploy.artifact import EXPORT_AGAIN, Artifact, open_engine, read_artifact
from lorkd_deploy.deploy.guarded import TaskGuard
from lorkd_deploy.errors import ArtifactError, ImageError
from lorkd_deploy.preprocess import resized_otherwise
from lorkd_deploy.runtime import IMAGE, PROBABILITIES, Closing, RunOptions
from lorkd_deploy.safety.guard import Guard, known_of
from lorkd_deploy.schema import Part, document_bytes, read_part
from lorkd_deploy.storage import read_tensors, tensor_bytes

STEP = "step.json"
GUARD = "guard.safetensors"
SCHEMA = 1
MOST = 32  # images per request
LABEL, GUARD_SCORE = "label", "guard"
log = logging.getLogger(__name__)


class Step(Part):
    """What `step.json` says. `guard` is the task's, None where it has none; `resampling_sha256` and
    `pillow` are of the Pillow that resized the pictures that it was trained on.
    """

    schema_version: int = SCHEMA
    guard: Guard | None
    resampling_sha256: str | None
    pillow: str


class Tensor(NamedTuple):
    """An input or output of a model step: its type by the open inference protocol, and its shape,
    -1 where that is any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def step_files(artifact: Artifact, bundle: Bundle) -> dict[str, bytes]:
    """What has to lie beside an engine of `bundle`, by name."""
    task = bundle.engine(artifact.engine)[0]
    guard = task.safety.guard
    step = Step(
        guard=guard, resampling_sha256=bundle.manifest.resampling_sha256, pillow=bundle.pillow
    )
    files = {STEP: document_bytes(step.model_dump(mode="json"))}
    if guard is not None:
        files[GUARD] = tensor_bytes(known_of(bundle.safety(task.name)), digest=True)
    return files


def inputs() -> tuple[Tensor, ...]:
    """`image`: images of one size `(N, H, W, 3)`, or grey `(N, H, W, 1)`; N is at most `MOST`."""
    return (Tensor(IMAGE, "UINT8", (-1, -1, -1, -1)),)


def outputs(artifact: Artifact, *, guarded: bool) -> tuple[Tensor, ...]:
    """`probabilities` `(N, K)`, as `lorkd predict` gives them; `label` `(N, T)`, one for each of
    the engine's T tasks: the class, or `outside` where the guard's score is above 1; `guard`
    `(N,)`, that score, where there is one.
    """
    found = [
        Tensor(PROBABILITIES, "FP64", (-1, artifact.tasks[-1].stop)),
        Tensor(LABEL, "BYTES", (-1, len(artifact.tasks))),
    ]
    return (*found, Tensor(GUARD_SCORE, "FP64", (-1,))) if guarded else tuple(found)


class ModelStep(Closing):
    """The engine in `folder` with what is in front of it and behind it, on `threads` CPU threads.

    Raises `ArtifactError` for a file that is missing or damaged, `RuntimeUnavailableError` where
    the engine's runtime can't run here.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        self.artifact = read_artifact(folder)
        step = read_part(folder / STEP, Step, ArtifactError, EXPORT_AGAIN)
        self._guard: TaskGuard | None = None
        if step.guard is not None:
            self._guard = TaskGuard(step.guard, read_tensors(folder / GUARD))
        if self.artifact.parity.status != "passed":
            log.warning(
                "%s is not verified on this device: `lorkd verify` does", self.artifact.name
            )
        filtered = self.artifact.preprocess.interpolation
        if (
            otherwise := resized_otherwise(filtered, step.resampling_sha256, step.pillow)
        ) is not None:
            log.warning(otherwise)
        self._turn = threading.Lock()
        self._runner = open_engine(self.artifact, RunOptions(threads=threads))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a call gives."""
        return outputs(self.artifact, guarded=self._guard is not None)

    def __call__(self, images: npt.NDArray[Any]) -> Mapping[str, npt.NDArray[Any]]:
        """Every output by name, of uint8 `images` `(N, H, W, 3)` or `(N, H, W, 1)`.

        Any thread may call it; they take turns at the engine. Raises `ImageError` for images that
        can't be used, `ArtifactError` for an engine that fails.
        """
        batch = self._prepared(images)
        with self._turn:
            given = self._runner.outputs(batch)
        raw = self.artifact.raw
        rows = [probabilities_of(task, given, raw=raw) for task in self.artifact.tasks]
        scores = scores_of(self._guard, given)
        labels = np.array(
            [
                [label_of(task, row) for row in found]
                for task, found in zip(self.artifact.tasks, rows, strict=True)
            ],
            dtype=object,
        ).T
        answers: dict[str, npt.NDArray[Any]] = {PROBABILITIES: np.concatenate(rows, axis=1)}
        if scores is None:
            return answers | {LABEL: labels}
        labels[scores > 1] = OUTSIDE
        return answers | {LABEL: labels, GUARD_SCORE: scores}

    def close(self) -> None:
        """Free the engine, after the call that is in progress."""
        with self._turn:
            self._runner.close()

    def _prepared(self, images: U8) -> Any:
        if images.ndim != 4 or not 1 <= len(images) <= MOST:
            raise ImageError(
                f"{IMAGE} has shape {list(images.shape)}; 1 to {MOST} images are needed, "
                "[N, H, W, 3] or, grey, [N, H, W, 1]",
                fix="send several requests for more images, and images of several sizes",
            )
        return self.artifact.batch(self.artifact.preprocess.stacked(images))
