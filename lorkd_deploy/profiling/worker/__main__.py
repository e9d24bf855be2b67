"""The process that runs one engine, alone: `python -m lorkd_deploy.profiling.worker [CPU …]`.

It reads requests from stdin and answers on stdout (`messages`), and never imports torch. In
order: `open` an engine, make its `first` call, then `measure` or `infer` as often as asked. The
end of stdin ends it. Whatever a runtime prints goes to stderr, so that it can't garble an answer.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_deploy.profiling.worker.calls import pace, timed_calls, warm_up, without_gc

if TYPE_CHECKING:
    from lorkd_deploy.arrays import Batch
    from lorkd_deploy.runtime import Runner

Answer = tuple[dict[str, Any], bytes]


class Session:
    """One worker's engine and what is asked of it."""

    def __init__(self) -> None:
        from lorkd_deploy.machine.memory import resident

        self.resident = resident
        self.empty = resident().now
        self.runner: Runner | None = None
        self.dtype = "float32"  # of what the engine takes
        self.earlier: list[Runner] = []  # opened before, and still open: several in one process

    def open(self, request: dict[str, Any], _: bytes) -> Answer:
        """Import the runtime, load the engine; → times in ms, memory in MiB, the runner's facts."""
        from lorkd_deploy.runtime import RunOptions, exporter

        if self.runner is not None:
            self.earlier.append(self.runner)
        started = time.perf_counter_ns()
        module = exporter(request["target"])
        module.probe()
        imported = time.perf_counter_ns()
        options = RunOptions(request["threads"], request["options"])
        self.runner = module.open(Path(request["folder"]), request["files"], options)
        self.dtype = request["dtype"]
        loaded = time.perf_counter_ns()
        return {
            "runtime_import": (imported - started) / 1e6,
            "load": (loaded - imported) / 1e6,
            "empty": self.empty,
            "loaded": self._over_empty(self.resident().now),
            "allocated": self._allocated(),
            "facts": self.runner.facts,
        }, b""

    def first(self, request: dict[str, Any], _: bytes) -> Answer:
        """The first call; `answered` is the monotonic clock when its logits were there, ns."""
        run, batch = self._ready(request)
        started = time.perf_counter_ns()
        run(batch)
        answered = time.perf_counter_ns()
        return {"first_inference": (answered - started) / 1e6, "answered": answered}, b""

    def measure(self, request: dict[str, Any], _: bytes) -> Answer:
        """Warm up, then time single calls; the payload is int64 nanoseconds, one per call.

        `settled` is whether the warm-up ended because its median did, `pace` the nanoseconds of a
        fixed piece of work beside the calls, the slower of before and after.
        """
        run, batch = self._ready(request)
        size = len(batch)
        interruptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        with without_gc():
            beside = pace()
            warm, settled = warm_up(run, batch, -(-request["warmup"] // size), request["seconds"])
            least = -(-request["iterations"] // size)
            calls = timed_calls(run, batch, least, request["seconds"])
            beside = max(beside, pace())
        interruptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - interruptions
        return {
            "peak": self._over_empty(self.resident().peak),
            "allocated": self._allocated(),
            "interruptions": interruptions,
            "images": (warm + len(calls)) * size,
            "settled": settled,
            "pace": beside,
        }, calls.tobytes()

    def stages(self, request: dict[str, Any], _: bytes) -> Answer:
        """One image from its file to an answer, again and again; int64 ns, four per pass."""
        from lorkd_deploy.profiling.worker.stages import time_stages

        with without_gc():
            found = time_stages(self._runner(), request)
        return {}, found.tobytes()

    def scenario(self, request: dict[str, Any], _: bytes) -> Answer:
        """One test of MLCommons LoadGen on this engine; see `loadgen.run`."""
        from lorkd_deploy.profiling.mlperf.loadgen import run

        return run(self._runner(), request), b""

    def layers(self, request: dict[str, Any], _: bytes) -> Answer:
        """Where an engine's time goes; nothing where its target doesn't tell. It opens the engine
        anew, since a runtime that watches its layers is slower."""
        from lorkd_deploy.runtime import RunOptions, exporter

        tell = getattr(exporter(request["target"]), "layers", None)
        if tell is None:
            return {"layers": []}, b""
        images = _drawn(request["shape"], request["dtype"], 0)
        options = RunOptions(request["threads"], {})
        place = Path(request["folder"])
        return {"layers": tell(place, request["files"], options, images, request["calls"])}, b""

    def files(self, _request: dict[str, Any], _: bytes) -> Answer:
        """Every file that this process has mapped or imported, or its runtime's cache holds."""
        from lorkd_deploy.machine.page_cache import mapped_files

        imported = {
            path
            for module in list(sys.modules.values())
            for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None))
            if path
        }
        cache = getattr(self.runner, "cache", None)
        kept = {str(file) for file in cache.rglob("*") if file.is_file()} if cache else set()
        return {"files": sorted({*mapped_files(), *imported, *kept})}, b""

    def used(self, _request: dict[str, Any], _: bytes) -> Answer:
        """CPU seconds that this process has used so far, all its threads together."""
        spent = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu": spent.ru_utime + spent.ru_stime}, b""

    def infer(self, request: dict[str, Any], payload: bytes) -> Answer:
        """What the engine says of the batch in the payload; float32 `(N, K)` in the answer's."""
        import numpy as np

        images = np.frombuffer(payload, self.dtype).reshape(request["shape"])
        runner = self._runner()
        step = request["batch"]
        parts = [runner(images[i : i + step]) for i in range(0, len(images), step)]
        logits = np.ascontiguousarray(np.concatenate(parts), np.float32)
        return {"shape": list(logits.shape)}, logits.tobytes()

    def close(self) -> None:
        for runner in (*self.earlier, *([self.runner] if self.runner else [])):
            runner.close()

    def _allocated(self) -> float | None:
        """MiB that the runtime's own allocator holds on the GPU, where the runner tells."""
        tell = getattr(self.runner, "allocated", None)
        return None if tell is None else tell() / (1 << 20)

    def _runner(self) -> Runner:
        if self.runner is None:
            raise RuntimeError("no engine is open")
        return self.runner

    def _ready(self, request: dict[str, Any]) -> tuple[Runner, Batch]:
        return self._runner(), _drawn(request["shape"], self.dtype, request["seed"])

    def _over_empty(self, mib: float | None) -> float | None:
        return None if mib is None or self.empty is None else mib - self.empty


def _drawn(shape: list[int], dtype: str, seed: int) -> Batch:
    """A batch of noise."""
    import numpy as np

    generator = np.random.default_rng(seed)
    if dtype == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32)


def _serve(requests: Any, replies: Any) -> None:
    from lorkd_deploy.errors import LorkdError
    from lorkd_deploy.profiling.worker.messages import receive, send

    session = Session()
    handlers = {
        handler.__name__: handler
        for handler in (
            session.open,
            session.first,
            session.measure,
            session.infer,
            session.stages,
            session.scenario,
            session.used,
            session.files,
            session.layers,
        )
    }
    while True:
        try:
            request, payload = receive(requests)
        except EOFError:
            session.close()
            return
        try:
            answer, data = handlers[request["do"]](request, payload)
        except LorkdError as exc:
            answer, data = {"error": exc.what, "fix": exc.fix}, b""
        except Exception as exc:
            # Whatever a runtime raises is the benchmark's to report, with the engine's name.
            answer, data = {"error": f"{type(exc).__name__}: {exc}", "fix": None}, b""
        send(replies, answer, data)


def main(cpus: list[str]) -> None:
    """Serve until stdin ends, pinned to the given logical CPUs."""
    if cpus:
        # Before NumPy or a runtime is imported: thread pools take over what is allowed then.
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus])
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import numpy as np  # noqa: F401 (the empty process that memory is measured against has it)

    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(sys.argv[1:])
