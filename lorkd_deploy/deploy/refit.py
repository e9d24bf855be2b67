"""One engine in memory for many experts: their weights are put into it by name, in turns.

Opt-in (`Switchboard(…, refit=True)`), for targets whose runner has a method `refit`. What can go
wrong is known: a network that becomes a blend of two experts, or all zeros (pytorch/TensorRT#3437,
NVIDIA/TensorRT#3628). So every refit writes the union of the weights that any expert touches, and
no expert is used before A → B → A has shown that B's answers are those of its model, and that A's
are the same bits as before.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, engine_tasks, open_engine
from lorkd_deploy.deploy.graph import onnx_model
from lorkd_deploy.deploy.origin import given_model
from lorkd_deploy.deploy.parity import ParityError
from lorkd_deploy.deploy.reference import Reference
from lorkd_deploy.errors import GateError, UsageError
from lorkd_deploy.runtime import F32, Closing, Runner, RunOptions, exporter
from lorkd_deploy.storage import sha256_bytes

OPTION = {"refit": True}  # of `lorkd export`: what an engine has to be built with
PRECISIONS = ("fp32", "fp16")  # an int8 engine has the scales of its task's own images
FIX = "don't use refit here: a Switchboard without it keeps an engine for each expert"
Weights = Mapping[str, npt.NDArray[Any]]


class _Model(NamedTuple):
    """A task's ONNX model, as far as it is needed."""

    sha256: str
    weights: Weights


@runtime_checkable
class Refittable(Protocol):
    """What a runner has whose weights can be exchanged while it is open."""

    def refit(self, weights: Weights, touched: Sequence[str]) -> None:
        """Put `weights` in: those in `touched`, and whatever else the runtime asks for with them.

        Raises `ArtifactError` where the runtime refuses; the engine must not be used then.
        """


def sharing(bundle: Bundle, task: str) -> tuple[str, ...]:
    """The tasks that can share an engine with `task`, itself included, in the manifest's order: a
    refit keeps shapes, and experts differ in shape by the number of classes alone."""
    wanted = len(bundle.task(task).classes)
    return tuple(entry.name for entry in bundle.manifest.tasks if len(entry.classes) == wanted)


class SharedEngine:
    """The engine of the first of `tasks`, for all of them; any thread may call its methods.

    `artifact` is that engine's, exported with `OPTION`; raises `UsageError` where it wasn't.
    """

    def __init__(self, bundle: Bundle, tasks: Sequence[str], artifact: Artifact) -> None:
        if not artifact.facts.get("options", {}).get("refit"):
            raise UsageError(
                f"the engine of {artifact.engine} was not built to be refitted",
                where=artifact.folder,
                fix=f"lorkd export RUN --target {artifact.target} --precision "
                f"{artifact.precision} --task {artifact.engine} --option refit=true",
            )
        self._reference = Reference(bundle)
        self._artifact = artifact
        self._touched = _touched(bundle, tasks)
        self._turn = threading.RLock()
        self._runner: Runner | None = None
        self._inside = ""  # whose weights the open engine has
        self._models: dict[str, _Model] = {}
        self._users: Counter[str] = Counter()  # a task may be opened again before it is closed

    def open(self, task: str, options: RunOptions) -> tuple[Artifact, Runner]:
        """A runner that answers as `task`'s expert, proven on this machine, and what it is.

        Raises `ParityError` where its answers are not those of its model, `GateError` where the
        engine isn't the same as before after A → B → A.
        """
        with self._turn:
            self._users[task] += 1
            try:
                if self._runner is None:
                    self._runner = self._opened(options)
                return self._proven(task), _Expert(self, task, self._runner.facts)
            except BaseException:
                self.close(task)
                raise

    def answer(self, task: str, batch: F32) -> F32:
        """Logits of `task`'s expert; other experts wait."""
        with self._turn:
            return self._holding(task)(batch)

    def close(self, task: str) -> None:
        """End one opening of `task`: the last one of a task frees its weights, the last one of all
        the engine."""
        with self._turn:
            self._users[task] -= 1
            if not self._users[task] and task != self._artifact.engine:
                self._models.pop(task, None)
            if not any(self._users.values()) and self._runner is not None:
                self._runner.close()
                self._runner, self._inside = None, ""
                self._models.clear()

    def _opened(self, options: RunOptions) -> Runner:
        runner = open_engine(self._artifact, options)
        if not isinstance(runner, Refittable):
            runner.close()
            raise UsageError(f"{self._artifact.target} has no refit", fix=FIX)
        return runner

    def _proven(self, task: str) -> Artifact:
        """A → B → A, with B judged in between; gives B's artifact."""
        bundle, built = self._reference.bundle, self._artifact
        first = built.engine
        batch = bundle.manifest.preprocess.normalise(known_inputs(bundle)[:1])
        before = self.answer(first, batch)
        parity = self._reference.check(task, self._holding(task), built.precision)
        if parity.status == "failed":
            reasons = "\n    ".join(parity.reasons)
            raise ParityError(
                f"refitted, the {built.target} engine is not {task}'s expert:\n    {reasons}",
                parity,
                where=built.folder,
                fix=FIX,
            )
        if not np.array_equal(self.answer(first, batch), before):
            raise GateError(
                f"{first} → {task} → {first} changed the answers of {first}: a refit of this "
                f"{built.target} leaves something of another expert behind",
                where=built.folder,
                fix=FIX,
            )
        entry = bundle.task(task)
        return built.model_copy(
            update={
                "engine": task,
                "department": entry.department,
                "tasks": engine_tasks((entry,)),
                "onnx_sha256": self._models[task].sha256,
                "parity": parity,
            }
        )

    def _holding(self, task: str) -> Runner:
        """The open engine with `task`'s weights in it; after a failure it has nobody's."""
        assert self._runner is not None
        if self._inside != task:
            if task not in self._models:
                model = self._model(task)
                self._models[task] = _Model(sha256_bytes(model), _initialisers(model))
            self._inside = ""
            weights = self._models[task].weights
            cast("Refittable", self._runner).refit(weights, self._touched)
            self._inside = task
        return self._runner

    def _model(self, task: str) -> bytes:
        bundle, built = self._reference.bundle, self._artifact
        able = exporter(built.target).probe()
        return given_model(onnx_model(bundle, task), bundle, task, built.precision, able)


class _Expert(Closing):
    """A `Runner` that answers as one task's expert."""

    def __init__(self, shared: SharedEngine, task: str, facts: Mapping[str, Any]) -> None:
        self._shared, self._task = shared, task
        self.facts = {**facts, "refitted": True}
        self._closed = False

    def __call__(self, batch: F32) -> F32:
        return self._shared.answer(self._task, batch)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._shared.close(self._task)


def _touched(bundle: Bundle, tasks: Sequence[str]) -> tuple[str, ...]:
    """Names of the weights that are not the same bytes for all of `tasks`."""
    seen: dict[str, bytes] = {}
    touched = set()
    for task in tasks:
        for name, value in bundle.fuse(task).items():
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
            if seen.setdefault(name, digest) != digest:
                touched.add(name)
    return tuple(sorted(touched))


def _initialisers(model: bytes) -> Weights:
    import onnx

    graph = onnx.ModelProto.FromString(model).graph
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
