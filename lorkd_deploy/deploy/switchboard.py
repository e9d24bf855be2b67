"""The task-knowledge switch on a device: one process that serves every department's tasks.

    with Switchboard("runs/small") as board:
        with board.department("eye-clinic", task="retina") as engine:
            logits = engine(batch)

Each expert is an engine of its own, fused beforehand: a switch exchanges whole engines and never
weights inside of one, so nothing can be blended and A → B → A gives the same bits.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import (
    ARTIFACT,
    NOT_VERIFIED,
    Artifact,
    engine_folder,
    exported_engine,
    open_engine,
)
from lorkd_deploy.deploy.export import export
from lorkd_deploy.errors import ArtifactError, UsageError, unknown_name
from lorkd_deploy.precisions.table import precision_of
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import ALIASES, Closing, Runner, RunOptions, exporter

MIB = 2**20  # bytes
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Slot:
    """One task's engine: open where `runner` is set, in use while `users` > 0."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    bytes: int = 0
    artifact: Artifact | None = None
    runner: Runner | None = None


class Engine:
    """An open engine for the length of a `with` block: float32 `(N, 3, S, S)` → logits `(N, K)`,
    or, exported with `raw`, uint8 `(N, S, S, 3)` → probabilities.

    `artifact` says what it is: classes, preprocessing, proof. Threads that use the same engine take
    turns; those of different engines don't wait for each other.
    """

    def __init__(self, artifact: Artifact, runner: Runner, turn: threading.Lock) -> None:
        self.artifact = artifact
        self._runner: Runner | None = runner
        self._turn = turn

    @property
    def facts(self) -> dict[str, Any]:
        """What really runs: provider, precision, threads, runtime version."""
        return {} if self._runner is None else self._runner.facts

    def __call__(self, batch: Batch) -> F32:
        """What it says of `batch`; raises `ArtifactError` where the runtime refuses or fails.

        Raises `UsageError` after the `with` block: the engine may serve another then, or be closed.
        """
        with self._turn:
            if self._runner is None:
                raise UsageError(
                    f"the engine of {self.artifact.engine} was used after its `with` block",
                    fix="call it inside of `with board.department(…) as engine:`",
                )
            return self._runner(batch)

    def end(self) -> None:
        """Give the engine back, after the call that is in progress."""
        with self._turn:
            self._runner = None


class Switchboard(Closing):
    """Opens departments' engines when they are asked for, and keeps them open within a budget.

    `bundle` is a RUN or a bundle. Engines are those below its export folder, each checked against
    its hashes whenever it is opened; one that wasn't exported yet is exported first, proof
    included. Open engines may have `budget` MiB together, counted by the size of their files; what
    was used longest ago is closed before the next one is opened, and never while it is in use: if
    all are, the budget is exceeded until one is given back. Every method may be called from any
    thread.

    With `adapters` all tasks share one session of W0, in less memory than all kept open: engines
    are those of `lorkd export --option adapters=true`. The budget counts their adapters, without
    W0.

    Raises `BundleError` for a damaged bundle, `UsageError` for an unknown target or precision.
    """

    def __init__(
        self,
        bundle: str | Path,
        target: str = "onnx",
        *,
        precision: str = "fp32",
        budget: float = 512,
        threads: int = 1,
        adapters: bool = False,
    ) -> None:
        self._run = open_run(bundle)
        self._bundle = load_bundle(self._run.bundle)
        self._departments = self._bundle.manifest.departments  # once: that goes over all tasks
        self._target = ALIASES.get(target, target)
        exporter(self._target)
        precision_of(precision)  # of `auto` too: which one an engine is has to be known
        self._precision = precision
        self._budget = budget * MIB
        self._options = RunOptions(threads=threads)
        self._adapters = adapters
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # what was used longest ago is first
        self._warned: set[str] = set()
        self._closed = False

    @property
    def departments(self) -> dict[str, tuple[str, ...]]:
        """Department → its tasks."""
        return dict(self._departments)

    @property
    def open_engines(self) -> tuple[str, ...]:
        """Tasks whose engines are open, that which was used longest ago first."""
        with self._lock:
            return tuple(task for task, slot in self._slots.items() if slot.runner is not None)

    @contextmanager
    def department(self, department: str, task: str | None = None) -> Iterator[Engine]:
        """The engine of a department's `task`, which may be left out where it has only one.

        Raises `UsageError` for an unknown name or a board that is closed, `ArtifactError` for an
        engine that is damaged, `GateError` for one that fails its proof, `RuntimeUnavailableError`
        where the target can't run here.
        """
        name = self._task(department, task)
        slot = self._taken(name)
        try:
            if slot.runner is None:
                with slot.turn:  # one thread opens it, the others wait for that
                    if slot.runner is None:
                        slot.runner = self._opened(name, slot)
            assert slot.artifact is not None
            engine = Engine(slot.artifact, slot.runner, slot.turn)
            try:
                yield engine
            finally:
                engine.end()
        finally:
            self._given_back(name, slot)

    def close(self) -> None:
        """Close every engine; one in use as soon as it is given back."""
        with self._lock:
            self._closed = True
        self._shrink()

    def _task(self, department: str, task: str | None) -> str:
        if department not in self._departments:
            raise unknown_name("department", department, self._departments, where=self._run.path)
        tasks = self._departments[department]
        if task is None and len(tasks) == 1:
            return tasks[0]
        if task is None:
            raise UsageError(
                f"{department} has several tasks", fix=f"task= one of {', '.join(tasks)}"
            )
        if task not in tasks:
            raise unknown_name(f"task of {department}", task, tasks, where=self._run.path)
        return task

    def _taken(self, task: str) -> _Slot:
        """The task's slot, counted as in use: from here on nobody closes it."""
        with self._lock:
            if self._closed:
                raise UsageError("the switchboard is closed", fix="open a new one")
            slot = self._slots.setdefault(task, _Slot())
            slot.users += 1
            self._slots.move_to_end(task)
            return slot

    def _given_back(self, task: str, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1
            if not slot.users and slot.runner is None:  # it could not be opened
                del self._slots[task]
        self._shrink()

    def _opened(self, task: str, slot: _Slot) -> Runner:
        slot.artifact = self._artifact(task)
        with self._lock:
            whole, alone = slot.artifact.bytes, slot.artifact.files[0].bytes
            slot.bytes = alone if self._adapters else whole
        self._shrink()
        return open_engine(slot.artifact, self._options)

    def _artifact(self, task: str) -> Artifact:
        """The engine as it lies there now, exported if it doesn't."""
        department = self._bundle.task(task).department
        place = engine_folder(department, task, self._target, self._precision)
        record = self._run.export / place / ARTIFACT
        if not record.exists():
            with self._building:  # a run has one writer at a time
                if not record.exists():
                    export(
                        self._run.path,
                        self._target,
                        precision=self._precision,
                        options={"adapters": True} if self._adapters else None,
                        task=[task],
                    )
        artifact = exported_engine(self._run, self._bundle, task, self._target, self._precision)
        if self._adapters and not artifact.adapters:
            raise ArtifactError(
                f"the engine of {task} is fused, and shares no session with others",
                where=artifact.folder,
                fix=f"lorkd export {self._run.path} --option adapters=true, or leave adapters out",
            )
        if artifact.parity.status != "passed" and task not in self._warned:
            self._warned.add(task)
            log.warning(NOT_VERIFIED, self._run.path)
        return artifact

    def _shrink(self) -> None:
        """Close what was used longest ago until the rest fits, except for what is in use."""
        with self._lock:
            limit = 0.0 if self._closed else self._budget
            used = sum(slot.bytes for slot in self._slots.values())
            idle = [task for task, slot in self._slots.items() if not slot.users]
            closing = []
            for task in idle:
                if used <= limit:
                    break
                closing.append(self._slots.pop(task))
                used -= closing[-1].bytes
        for slot in closing:
            if slot.runner is not None:
                slot.runner.close()
