"""What our runner adds to ONNX Runtime's own call: both in one process, in turns.

    python benchmarks/runner_overhead.py

ShuffleNetV2 1.0x and a network of one 1 × 1 convolution (the worst case: nearly nothing but the
call), batch 1, one thread. Each round opens a fresh session for either side, in changing order,
with equal options, then takes turns of BLOCK calls. CPU time is what the calling thread used, and
with one thread that is everything: it doesn't count waiting for others on a busy machine. The last
column runs both on one and the same session, which leaves the wrapper alone.
Writes benchmarks/results/runner_overhead.json and .md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lorkd_deploy.profiling.environment import environment
from lorkd_deploy.runtime import RunOptions, exporter

LIMIT = 1.03  # our p50 over the bare loop's
ROUNDS, TURNS, BLOCK, WARMUP = 6, 10, 20, 20
RESULTS = Path(__file__).parent / "results"
Call = Callable[[Any], Any]


def shufflenet(file: Path, size: int) -> None:
    """ShuffleNetV2 1.0x with random weights, as torch exports it."""
    import torch

    from lorkd_deploy import models

    network = models.build("torchvision:shufflenet_v2_x1_0").eval()
    program = torch.onnx.export(
        network, (torch.zeros(1, 3, size, size),), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(file)


def smallest(file: Path, size: int) -> None:
    """One convolution of 3 to 1 channels and the mean."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["input", "w"], ["x"]),
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("Flatten", ["y"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "smallest",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, file)


NETWORKS = {
    "ShuffleNetV2 1.0x, 224 px": (shufflenet, 224),
    "ShuffleNetV2 1.0x, 64 px": (shufflenet, 64),
    "one convolution, 16 px": (smallest, 16),
}


def bare(file: Path) -> Call:
    """ONNX Runtime's session as its documentation shows it, threads set as ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return bare_call(session)


def bare_call(session: Any) -> Call:
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def timed(call: Call, batch: Any, count: int) -> list[tuple[int, int]]:
    """Wall clock and CPU time of each call, ns."""
    wall, cpu = time.perf_counter_ns, time.thread_time_ns
    times = []
    for _ in range(count):
        used = cpu()
        began = wall()
        call(batch)
        ended = wall()
        times.append((ended - began, cpu() - used))
    return times


def in_turns(ours: Call, theirs: Call, batch: Any) -> Any:
    """int64 `(2, calls, 2)`: ours and theirs, wall clock and CPU time; who begins changes."""
    times: tuple[list[Any], list[Any]] = ([], [])
    for call in (ours, theirs):
        timed(call, batch, WARMUP)
    for turn in range(TURNS):
        for side in (0, 1) if turn % 2 else (1, 0):
            times[side].extend(timed((ours, theirs)[side], batch, BLOCK))
    return np.array(times)


def measure(file: Path, size: int) -> dict[str, Any]:
    """Medians over all rounds, and the ratios in each."""
    batch = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    target = exporter("onnx")
    rounds, same = [], []
    for number in range(ROUNDS):
        loop = bare(file) if number % 2 else None
        with target.open(file.parent, [file.name], RunOptions(threads=1)) as runner:
            rounds.append(in_turns(runner, loop or bare(file), batch))
            session: Any = runner._run.__self__  # type: ignore[attr-defined]
            same.append(in_turns(runner, bare_call(session), batch))
    ours, theirs = np.median(np.concatenate(rounds, axis=1), axis=1) / 1e3  # each: wall, CPU in µs
    by_round = [np.median(times, axis=1) for times in rounds]
    alone = np.median(np.concatenate(same, axis=1), axis=1) / 1e3
    return {
        "calls_a_side": ROUNDS * TURNS * BLOCK,
        "ours_p50_us": ours.round(2).tolist(),
        "bare_p50_us": theirs.round(2).tolist(),
        "ratio": (ours / theirs).round(4).tolist(),
        "ratio_by_round": [(a / b).round(4).tolist() for a, b in by_round],
        "same_session_ratio": (alone[0] / alone[1]).round(4).tolist(),
        "same_session_difference_us": (alone[0] - alone[1]).round(2).tolist(),
    }


def main() -> int:
    before = os.getloadavg()
    rows = {}
    for name, (make, size) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            make(file, size)
            rows[name] = measure(file, size)
    machine = environment()
    document = {
        "limit": LIMIT,
        "rounds": ROUNDS,
        "turns": TURNS,
        "block": BLOCK,
        "warmup": WARMUP,
        "threads": 1,
        "batch": 1,
        "each_pair_is": ["wall clock", "CPU time"],
        "environment": machine.model_dump(mode="json"),
        "load_average": {"before": before, "after": os.getloadavg()},
        "networks": rows,
    }
    lines = [
        "# Our runner beside the bare ONNX Runtime loop",
        "",
        f"One process, batch 1, one thread, fp32, {ROUNDS} rounds with fresh sessions, {TURNS} "
        f"turns of {BLOCK} calls each, {WARMUP} calls of warm-up. {machine.cpu}, "
        f"{machine.allowed_cpus} CPUs, onnxruntime {onnxruntime.__version__}, Python "
        f"{machine.python}, load average {before[0]:.1f} at the start and "
        f"{os.getloadavg()[0]:.1f} at the end. The ratio of wall-clock medians has to stay at or "
        f"below {LIMIT}; on one and the same session only the wrapper differs.",
        "",
        "| network | clock | bare p50 µs | ours p50 µs | ratio | rounds from … to | same session |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(_row(name, row, clock) for name, row in rows.items() for clock in (0, 1)),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "runner_overhead.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "runner_overhead.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(row["ratio"][0] <= LIMIT for row in rows.values()) else 1


def _row(name: str, row: dict[str, Any], clock: int) -> str:
    rounds = [ratios[clock] for ratios in row["ratio_by_round"]]
    return (
        f"| {name} | {('wall', 'CPU')[clock]} | {row['bare_p50_us'][clock]:.1f} "
        f"| {row['ours_p50_us'][clock]:.1f} | {row['ratio'][clock]:.3f} "
        f"| {min(rounds):.3f} … {max(rounds):.3f} | {row['same_session_ratio'][clock]:.3f} "
        f"({row['same_session_difference_us'][clock]:+.2f} µs) |"
    )


if __name__ == "__main__":
    sys.exit(main())
