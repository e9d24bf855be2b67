"""One engine in a process of its own, seen from the benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.worker.messages import receive, send

SCORING_BATCH = 32
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(LorkdError):
    """An engine that could not be loaded or run, or whose process ended."""


class EngineProcess:
    """A fresh process that runs `engine`, pinned to `cpus` (None: not pinned).

    A context manager: leaving it ends the process, whatever happened.
    """

    def __init__(self, engine: Artifact, threads: int, cpus: Sequence[int] | None) -> None:
        self.engine = engine
        self.threads = threads
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self.started = time.perf_counter_ns()
        command = [sys.executable, "-m", "lorkd_deploy.profiling.worker"]
        self._process = subprocess.Popen(
            command + [str(cpu) for cpu in cpus or ()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, do: str, payload: bytes | memoryview = b"", **fields: Any) -> Any:
        """Send one request → (answer, payload). Raises `WorkerError` that names the engine."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, {"do": do, **fields}, payload)
            answer, data = receive(self._process.stdout)
        except (EOFError, OSError, ValueError):
            raise self._ended(do) from None
        if "error" in answer:
            raise WorkerError(
                f"the engine {self.engine.name} failed to {_DOING[do]}: {answer['error']}",
                where=self.engine.folder,
                fix=answer["fix"] or "`lorkd verify RUN` checks it; `lorkd doctor` the runtime",
            )
        return answer, data

    def open(self, another: Artifact | None = None) -> dict[str, Any]:
        """Load the engine, or `another` beside it; → what `worker.Session.open` says."""
        answer, _ = self.ask("open", **self._of(another or self.engine), options={})
        return dict(answer)

    def layers(self, engine: Artifact, batch: int, calls: int) -> list[list[Any]]:
        """What `worker.Session.layers` says of `engine`, which isn't left open."""
        shape = [batch, *engine.input_shape]
        answer, _ = self.ask("layers", **self._of(engine), shape=shape, calls=calls)
        return list(answer["layers"])

    def infer(self, images: Batch) -> F32:
        """What the engine says, float32 `(N, K)`, of `images`, which it takes as they are."""
        data = np.ascontiguousarray(images)
        answer, logits = self.ask(
            "infer", data.tobytes(), shape=list(data.shape), batch=SCORING_BATCH
        )
        return np.frombuffer(logits, np.float32).reshape(answer["shape"])

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _of(self, engine: Artifact) -> dict[str, Any]:
        """A request's fields that say which engine; from now on an error names this one."""
        self.engine = engine
        return {
            "target": engine.target,
            "folder": str(engine.folder),
            "files": list(engine.file_names),
            "dtype": engine.input_dtype,
            "threads": self.threads,
        }

    def _ended(self, do: str) -> WorkerError:
        self._process.kill()
        code = self._process.wait()
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (out of memory, or killed from outside)"
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        said = f"; its last words: {' | '.join(last)}" if last else ""
        return WorkerError(
            f"the process of the engine {self.engine.name} ended {how} while it was to "
            f"{_DOING[do]}{said}",
            where=self.engine.folder,
            fix="`lorkd verify RUN` checks the engine; `lorkd doctor` the runtime and the machine",
        )


_DOING = {
    "open": "load",
    "first": "give its first answer",
    "measure": "be measured",
    "infer": "score images",
    "stages": "answer an image file",
    "scenario": "answer LoadGen",
    "used": "tell its CPU time",
    "files": "tell its files",
    "layers": "tell where its time goes",
}
