"""MLCommons LoadGen and the system under test, in the worker's process, over the runner.

LoadGen issues the queries and keeps the time; this module only answers them. Its rules are those of
the `mlperf.conf` that is built into it, for a model that the file doesn't name. The server
scenario's arrival rate is searched for by short tests first, since LoadGen needs one.
https://github.com/mlcommons/inference/tree/master/loadgen
"""

from __future__ import annotations

import os
import queue
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import F32
from lorkd_deploy.profiling.mlperf.log import read_log
from lorkd_deploy.runtime import Runner

NAMES = {  # ours → LoadGen's
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
MODEL = "lorkd"  # in no line of mlperf.conf, so that the lines for every model hold
# More than the built-in rules ask for: the counts of MLPerf's image classification.
QUERIES = {"single-stream": 1024, "offline": 24_576}
MOST_SAMPLES = 1024  # held in memory in performance mode, as MLPerf's image classification does
MOST_BYTES = 256 << 20
QUICK_QUERIES, SEARCH_QUERIES = 100, 20
SEARCH_STEPS = 6
MARGIN = 0.9  # of the highest rate that held in the search
TRIES = 3
_END = None


class SystemUnderTest:
    """Answers LoadGen's queries by `runner`, in batches of at most `batch`.

    `inputs` are float32 `(N, 3, H, W)` in a file; what LoadGen asks to be loaded is held in memory.
    With `waiting` (the server scenario) a thread takes whatever has arrived as the next batch.
    """

    def __init__(self, runner: Runner, inputs: F32, batch: int, *, waiting: bool) -> None:
        import mlperf_loadgen  # type: ignore[import-not-found]

        self._complete = mlperf_loadgen.QuerySamplesComplete
        self._response = mlperf_loadgen.QuerySampleResponse
        self._runner, self._inputs, self._batch = runner, inputs, batch
        self._held: dict[int, F32] = {}
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve) if waiting else None
        if self._thread:
            self._thread.start()

    def load(self, indices: Sequence[int]) -> None:
        """Read these images into memory; untimed, as MLPerf has it."""
        self._held = {index: np.array(self._inputs[index]) for index in indices}

    def unload(self, _: Sequence[int]) -> None:
        self._held = {}

    def issue(self, samples: Sequence[Any]) -> None:
        """Answer one query; LoadGen waits for nothing in the server scenario."""
        if self._thread:
            for sample in samples:
                self._queue.put(sample)
            return
        for start in range(0, len(samples), self._batch):
            self._answer(samples[start : start + self._batch])

    def flush(self) -> None:
        """Nothing is held back, so there is nothing to send."""

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread:
            self._queue.put(_END)
            self._thread.join()

    def _serve(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < self._batch and batch[-1] is not _END:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            self._answer([sample for sample in batch if sample is not _END])
            if batch[-1] is _END:
                return

    def _answer(self, samples: Sequence[Any]) -> None:
        if not samples:
            return
        try:
            images = np.stack([self._held[sample.index] for sample in samples])
            logits = np.ascontiguousarray(self._runner(images), np.float32)
        except BaseException:
            # LoadGen has no word for an engine that failed: it would wait for ever. The benchmark
            # shows the last words of a process that ends.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
        size = logits.strides[0]
        address = logits.ctypes.data
        self._complete(
            [
                self._response(sample.id, address + row * size, size)
                for row, sample in enumerate(samples)
            ]
        )


def run(runner: Runner, request: dict[str, Any]) -> dict[str, Any]:
    """One test of `request["scenario"]` in `request["mode"]`, its logs in `request["logs"]`.

    → the settings that were chosen for it, and how often the server's rate was lowered.
    """
    mapped = np.load(request["inputs"], mmap_mode="r", allow_pickle=False)
    inputs = mapped[request["start"] : request["stop"]]
    logs = Path(request["logs"])
    test = Test(runner, inputs, request)
    expected = test.expected_seconds()
    if request["scenario"] != "server" or request["mode"] == "accuracy":
        test.run(logs, request["mode"], expected, 1 / expected)
        return {"lowered": 0, "rate": None}
    rate = test.search(expected)
    for lowered in range(TRIES):
        log = test.run(logs, request["mode"], expected, rate)
        if log.get("result_perf_constraints_met") or lowered == TRIES - 1:
            break
        rate *= MARGIN
    return {"lowered": lowered, "rate": rate}


class Test:
    """One scenario on one engine; every `run` is a test of LoadGen's of its own."""

    def __init__(self, runner: Runner, inputs: F32, request: dict[str, Any]) -> None:
        self._runner, self._inputs, self._request = runner, inputs, request
        self._scenario: str = request["scenario"]
        self._batch: int = 8 if self._scenario == "multi-stream" else request["batch"]
        if self._scenario == "single-stream":
            self._batch = 1
        held = MOST_BYTES // max(1, inputs[0].nbytes)
        self.performance_samples = max(1, min(len(inputs), MOST_SAMPLES, held))

    def expected_seconds(self) -> float:
        """Seconds an image at this scenario's batch, from a few calls after a warm-up."""
        size = min(self._batch, len(self._inputs))
        images = np.array(self._inputs[:size])
        took = []
        for _ in range(12):
            began = time.perf_counter()
            self._runner(images)
            took.append(time.perf_counter() - began)
        return statistics.median(took[4:]) / size

    def search(self, expected: float) -> float:
        """The highest arrival rate, queries a second, that short tests found to hold, less 10 %."""
        rate, holds, fails = 0.7 / expected, 0.0, None
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(SEARCH_STEPS):
                log = self.run(Path(folder), "performance", expected, rate, searching=True)
                if log.get("result_perf_constraints_met"):
                    holds = rate
                else:
                    fails = rate
                if fails is None:
                    rate *= 1.5
                else:
                    rate = (holds + fails) / 2 if holds else fails / 3
        return MARGIN * (holds or rate)

    def run(
        self, logs: Path, mode: str, expected: float, rate: float, *, searching: bool = False
    ) -> dict[str, Any]:
        """Let LoadGen run the test; → what its detailed log says."""
        import mlperf_loadgen

        settings = self._settings(mode, expected, rate, searching=searching)
        log = mlperf_loadgen.LogSettings()
        output = log.log_output
        output.outdir = str(logs)
        output.copy_summary_to_stdout = False
        log.log_output = output
        log.enable_trace = False
        system = SystemUnderTest(
            self._runner, self._inputs, self._batch, waiting=self._scenario == "server"
        )
        sut = mlperf_loadgen.ConstructSUT(system.issue, system.flush)
        library = mlperf_loadgen.ConstructQSL(
            len(self._inputs), self.performance_samples, system.load, system.unload
        )
        try:
            audit = str(logs / "audit.config")  # there is none; not one that lies about either
            mlperf_loadgen.StartTestWithLogSettings(sut, library, settings, log, audit)
        finally:
            system.close()
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(sut)
        return read_log(logs)

    def _settings(self, mode: str, expected: float, rate: float, *, searching: bool) -> Any:
        import mlperf_loadgen

        name = NAMES[self._scenario]
        settings = mlperf_loadgen.TestSettings()
        settings.FromConfig("", MODEL, name, 0)  # 0: the built-in file alone
        settings.scenario = getattr(mlperf_loadgen.TestScenario, name)
        settings.mode = getattr(mlperf_loadgen.TestMode, MODES[mode])
        settings.min_query_count = max(settings.min_query_count, QUERIES.get(self._scenario, 0))
        if self._request["quick"] or searching:
            settings.min_duration_ms = self._request["search_ms" if searching else "quick_ms"]
            settings.min_query_count = SEARCH_QUERIES if searching else QUICK_QUERIES
        # LoadGen draws as many queries as these let it expect, and ends where they are used up.
        nanoseconds = expected * 1e9 / 2
        settings.single_stream_expected_latency_ns = max(1, int(nanoseconds))
        settings.multi_stream_expected_latency_ns = max(1, int(8 * nanoseconds))
        settings.offline_expected_qps = 1.1 / expected
        settings.server_target_qps = rate
        settings.server_target_latency_ns = int(self._request["server_ms"] * 1e6)
        return settings


def available() -> Callable[..., Any] | None:
    """LoadGen's entry, or None where the package isn't installed."""
    try:
        import mlperf_loadgen
    except ImportError:
        return None
    found: Callable[..., Any] = mlperf_loadgen.StartTestWithLogSettings
    return found
