"""Whether the memory of a process grows with what it does, beside a control's."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from lorkd_deploy.machine.memory import resident

THREADS, ROUNDS, BLOCKS = 8, 100, 20
T95 = 2.145  # Student's, for the 16 blocks of the last four fifths: 14 degrees of freedom
LIMIT = 16  # KiB per 1,000, so 16 bytes each time: Python has no smaller object to lose


class Slope(NamedTuple):
    """KiB per 1,000 times, and its standard error."""

    kib: float
    error: float

    def __sub__(self, other: Slope) -> Slope:
        return Slope(self.kib - other.kib, float(np.hypot(self.error, other.error)))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.kib:+.1f} KiB (95 %: {low:+.1f} to {high:+.1f})"

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        return self.kib - T95 * self.error, self.kib + T95 * self.error

    @property
    def grows(self) -> bool:
        """Whether it is above `LIMIT`, by all of its interval."""
        return self.interval[0] > LIMIT


def slope(done: Any, kib: Any) -> Slope:
    """The line through the means of blocks of `kib` over `done`; the first fifth is left out."""
    blocks = np.array_split(np.arange(len(done)), BLOCKS)[BLOCKS // 5 :]
    x = np.array([np.mean(done[block]) for block in blocks]) / 1000
    y = np.array([np.mean(kib[block]) for block in blocks])
    away = x - x.mean()
    found = float(away @ y / (away @ away))
    rest = y - y.mean() - found * away
    return Slope(found, float(np.sqrt(rest @ rest / (len(x) - 2) / (away @ away))))


def at_rest() -> float:
    """KiB of resident memory without garbage, and without what the C library holds in reserve.

    Both come and go by themselves, and would hide what is lost.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
    return 1024 * (resident().now or 0.0)


def in_rounds(
    do: Callable[[int], None],
    count: int,
    done: Callable[[], int],
    minutes: float = 0,
    rounds: int = ROUNDS,
) -> Slope:
    """`do(0)` to `do(count - 1)` by 8 threads, and memory's slope over what is `done()` by then.

    Memory is read after each round, when nothing is under way. The rounds begin evenly over as
    many `minutes`, or one after the other.
    """
    began, samples = time.monotonic(), []
    gc.collect()
    gc.freeze()  # what is there already needn't be looked through after every round
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for number in range(rounds):
                due = began + 60 * minutes * number / rounds
                time.sleep(max(0, due - time.monotonic()))
                first, last = (count * n // rounds for n in (number, number + 1))
                list(pool.map(do, range(first, last)))
                samples.append((done(), at_rest()))
    finally:
        gc.unfreeze()
    return slope(*np.array(samples, float).T)


def _onnx() -> Callable[[str], Callable[[Any], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def opened(file: str) -> Callable[[Any], Any]:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})

    return opened


def _openvino() -> Callable[[str], Callable[[Any], Any]]:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}

    def opened(file: str) -> Callable[[Any], Any]:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(file), "CPU", hints)
        return lambda batch: compiled.create_infer_request().infer([batch])

    return opened


# Target → what opens a model's file with the runtime alone: the control.
BARE = {"onnx": _onnx, "openvino": _openvino}
