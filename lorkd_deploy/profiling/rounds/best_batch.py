"""The batch size at which an engine does most images a second, found before the rounds begin."""

from __future__ import annotations

import logging

import numpy as np

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.worker.process import EngineProcess, WorkerError

GAIN = 1.02  # a larger batch has to do so much more to be worth its wait
LONGEST = 4.0  # seconds per call, beyond which no larger batch is tried
WINDOWS, SECONDS = 3, 0.2  # the best of so many windows counts: what disturbs only slows down
log = logging.getLogger(__name__)


def best_batch(engine: Artifact, protocol: Protocol) -> int:
    """Double the batch from 1 up to `protocol.largest_batch` while throughput grows.

    Beyond the protocol's own batch sizes two sizes in a row without a gain end the search; one that
    the engine can't do ends it anywhere.
    Raises `WorkerError` where it can't do a single image.
    """
    best, fastest, without = 0, 0.0, 0
    size, measured_anyway = 1, max(protocol.batch_sizes)
    with EngineProcess(engine, protocol.threads, protocol.cpus) as process:
        process.open()
        while size <= protocol.largest_batch and (without < 2 or size <= measured_anyway):
            try:
                seconds = min(_median_call(process, size, protocol) for _ in range(WINDOWS))
            except WorkerError as exc:
                if not best:
                    raise
                log.info("%s does no batch of %d: %s", engine.name, size, exc.what)
                break
            if size / seconds > GAIN * fastest:
                best, fastest, without = size, size / seconds, 0
            else:
                without += 1
            if seconds > LONGEST:
                break
            size *= 2
    return best


def _median_call(process: EngineProcess, size: int, protocol: Protocol) -> float:
    """Seconds of the median call of `size` images."""
    _, data = process.ask(
        "measure",
        shape=[size, *process.engine.input_shape],
        seed=protocol.seed,
        iterations=2 * size,
        seconds=SECONDS,
        warmup=size,
    )
    return float(np.median(np.frombuffer(data, np.int64))) / 1e9
