"""Is our profiler right? Its p50 beside the runtimes' own tools, and what it costs itself.

    python benchmarks/crosscheck.py RUN [--pairs 7] [--seconds 1]

RUN needs engines: `lorkd export RUN --teacher`, and with `--target openvino` for its pairs. Every
pair measures one engine once with our worker and once with the runtime's own tool, in changing
order, on the same CPU with one thread and batch 1:

- ONNX Runtime: a bare loop over `InferenceSession.run` in a process of its own
- OpenVINO: `benchmark_app -hint latency -api sync`, whose one CPU gives it one thread. It reports
  the runtime's own clock, without the Python call that ours includes: so each pair also asks that
  clock about our runner's calls, and what is left of the difference is shown
- TensorRT: `trtexec --loadEngine`, where it and such engines are

Then what our loop and its clock add to an engine: CPU time of blocks of calls with and without
them, in turns. About six minutes on a quiet machine; on a busy one the pairs say little. Writes
benchmarks/results/crosscheck.json and .md, exits with 1 where a bound is missed. What the profiler
says of a slowed engine and of an identical copy is in decisions.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from document import Conditions, loads, write

from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts
from lorkd_deploy.profiling.planning.protocol import choose_cpus
from lorkd_deploy.profiling.timing import RoundCalls
from lorkd_deploy.profiling.worker.calls import timed_calls
from lorkd_deploy.profiling.worker.process import EngineProcess
from lorkd_deploy.runtime import RunOptions, exporter

AGREE = 0.05  # of the median pair
OVERHEAD = 0.01  # of an engine of 1 ms and more
TURNS, BLOCK = 100, 20
WARMUP = 20
LOOP = """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: np.load(sys.argv[2])}
for _ in range(int(sys.argv[4])):
    session.run(None, feed)
calls, deadline = [], time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < deadline:
    began = time.perf_counter_ns()
    session.run(None, feed)
    calls.append(time.perf_counter_ns() - began)
print(np.median(calls) / 1e6)
"""
OWN_CLOCK = """
import sys, time
from pathlib import Path
import numpy as np
from lorkd_deploy.runtime import RunOptions, exporter
model, seconds, warmup, shape = Path(sys.argv[1]), *map(float, sys.argv[2:4]), sys.argv[4:]
batch = np.random.default_rng(0).standard_normal([int(n) for n in shape], np.float32)
files = [model.name, model.with_suffix(".bin").name]
runner = exporter("openvino").open(model.parent, files, RunOptions(threads=1))
for _ in range(int(warmup)):
    runner(batch)
calls, own, deadline = [], [], time.perf_counter() + seconds
while time.perf_counter() < deadline:
    began = time.perf_counter_ns()
    runner(batch)
    calls.append(time.perf_counter_ns() - began)
    own.append(runner._request.latency)
print(np.median(calls) / 1e6, np.median(own))
"""


class Setting:
    """What every measurement here has in common."""

    def __init__(self, seconds: float, folder: Path) -> None:
        self.seconds = seconds
        self.folder = folder
        self.cpus = choose_cpus(1)

    def pinned(self, command: Sequence[str]) -> str:
        """The command's output, on the CPU that our workers get too."""
        cpus = set(self.cpus or ())
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )
        if done.returncode:
            raise SystemExit(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def shape(engine: Artifact) -> list[int]:
    return [1, 3, engine.preprocess.size, engine.preprocess.size]


def one_round(engine: Artifact, setting: Setting, seconds: float | None = None) -> RoundCalls:
    """A round as `lorkd benchmark` measures it, at batch 1."""
    with EngineProcess(engine, 1, setting.cpus) as process:
        process.open()
        process.ask("first", shape=shape(engine), seed=0)
        _, calls = process.ask(
            "measure",
            shape=shape(engine),
            seed=0,
            iterations=20,
            seconds=setting.seconds if seconds is None else seconds,
            warmup=WARMUP,
        )
    return RoundCalls(np.frombuffer(calls, np.int64))


def ours(engine: Artifact, setting: Setting) -> float:
    return float(np.median(one_round(engine, setting).calls)) / 1e6


def bare_loop(engine: Artifact, setting: Setting) -> float:
    feed = setting.folder / "feed.npy"
    np.save(feed, np.random.default_rng(0).standard_normal(shape(engine), np.float32))
    model = (engine.folder / engine.file_names[0]).absolute()
    command = [sys.executable, "-c", LOOP, str(model), str(feed), str(setting.seconds)]
    return float(setting.pinned([*command, str(WARMUP)]))


def benchmark_app(engine: Artifact, setting: Setting) -> float:
    model = (engine.folder / engine.file_names[0]).absolute()
    size = ",".join(str(side) for side in shape(engine))
    app = Path(sys.executable).with_name("benchmark_app")
    # It takes no -nthreads beside -hint; pinned to one CPU, OpenVINO uses one thread.
    command = [str(app), "-m", str(model), "-hint", "latency", "-api", "sync"]
    command += ["-infer_precision", "f32", "-data_shape", f"[{size}]"]
    said = setting.pinned([*command, "-t", f"{max(1, round(setting.seconds))}"])
    return _found(r"Median:\s+([\d.]+) (us|ms|s)\b", said)


def trtexec(engine: Artifact, setting: Setting) -> float:
    model = (engine.folder / engine.file_names[0]).absolute()
    said = setting.pinned(
        ["trtexec", f"--loadEngine={model}", f"--duration={setting.seconds:g}", "--useSpinWait"]
    )
    return _found(r"Latency: .*median = ([\d.]+) (ms)", said)


def _found(pattern: str, said: str) -> float:
    match = re.search(pattern, said)
    if not match:
        raise SystemExit(f"no median in what the tool said:\n{said}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    return float(match[1]) * units[match[2]]


TOOLS: dict[str, tuple[str, Callable[[Artifact, Setting], float]]] = {
    "onnx": ("ONNX Runtime's own loop", bare_loop),
    "openvino": ("benchmark_app -hint latency", benchmark_app),
    "trt": ("trtexec", trtexec),
}


def pairs(engine: Artifact, setting: Setting, count: int) -> dict[str, Any]:
    """Our p50 and the tool's, in turns; the ratio of each pair."""
    name, tool = TOOLS[engine.target]
    found: list[tuple[float, float]] = []
    calls: list[dict[str, float]] = []
    for number in range(count):
        if number % 2:
            theirs = tool(engine, setting)
            found.append((ours(engine, setting), theirs))
        else:
            own = ours(engine, setting)
            found.append((own, tool(engine, setting)))
        if engine.target == "openvino":
            call = python_call(engine, setting)
            calls.append(call | {"own_clock_ratio": call["own_clock_ms"] / found[-1][1]})
    ratios = [own / theirs for own, theirs in found]
    return {
        "engine": engine.name,
        "tool": name,
        "ours_ms": statistics.median(own for own, _ in found),
        "tool_ms": statistics.median(theirs for _, theirs in found),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "agrees": abs(statistics.median(ratios) - 1) <= AGREE,
        "python": {key: statistics.median(call[key] for call in calls) for key in calls[0]}
        if calls
        else None,
    }


def python_call(engine: Artifact, setting: Setting) -> dict[str, float]:
    """Median ms of our runner's call, and of the same calls by the runtime's own clock."""
    model = str((engine.folder / engine.file_names[0]).absolute())
    command = [sys.executable, "-c", OWN_CLOCK, model, str(setting.seconds), str(WARMUP)]
    whole, own = setting.pinned([*command, *map(str, shape(engine))]).split()
    return {"call_ms": float(whole), "own_clock_ms": float(own)}


def overhead(engine: Artifact) -> dict[str, Any]:
    """What the worker's loop adds to the engine's calls, by this thread's CPU time.

    CPU time, because with one thread it is everything, and waiting for others is not in it.
    """
    batch = np.random.default_rng(0).standard_normal(shape(engine), np.float32)
    spent: dict[str, list[float]] = {"plain": [], "timed": []}
    target = exporter(engine.target)
    with target.open(engine.folder, engine.file_names, RunOptions(threads=1)) as run:

        def plain() -> None:
            for _ in range(BLOCK):
                run(batch)

        sides = {"plain": plain, "timed": lambda: timed_calls(run, batch, BLOCK, 0)}
        for turn in range(2 * TURNS + 2):
            for name in sorted(sides, reverse=bool(turn % 2)):
                began = time.thread_time_ns()
                sides[name]()
                if turn > 1:  # the first two warm up
                    spent[name].append((time.thread_time_ns() - began) / BLOCK / 1e6)
    ratios = [timed / alone for timed, alone in zip(spent["timed"], spent["plain"], strict=True)]
    added = statistics.median(ratios) - 1
    alone = statistics.median(spent["plain"])
    return {
        "engine": engine.name,
        "cpu_ms": alone,
        "added": added,
        "blocks": len(ratios),
        "holds": added <= OVERHEAD or alone < 1,  # the bound is for engines of 1 ms and more
    }


def engines_of(run: Path) -> Iterator[Artifact]:
    """One expert's and one teacher's engine of each target that has a tool here."""
    seen = set()
    for engine in find_artifacts(run):
        kind = (engine.target, engine.engine == "teacher")
        usable = engine.precision == "fp32" and engine.target in TOOLS and kind not in seen
        if usable and (engine.target != "trt" or shutil.which("trtexec")):
            check_files(engine)
            seen.add(kind)
            yield engine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement in a pair")
    asked = parser.parse_args()
    engines = list(engines_of(asked.run))
    if not engines:
        raise SystemExit(f"no fp32 engine of {', '.join(TOOLS)} in {asked.run}: lorkd export it")
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(asked.seconds, Path(folder))
        document: dict[str, Any] = {
            "pairs": [pairs(engine, setting, asked.pairs) for engine in engines],
            "overhead": [overhead(engine) for engine in engines],
            "seconds": asked.seconds,
            **conditions.now(),
        }
    text = "\n".join(_report(document)) + "\n"
    write("crosscheck", document, text)
    print(text)
    agree = all(pair["agrees"] for pair in document["pairs"])
    return 0 if agree and all(row["holds"] for row in document["overhead"]) else 1


def _report(document: dict[str, Any]) -> Iterator[str]:
    machine = document["environment"]
    yield from ("# Our profiler beside the runtimes' own tools", "")
    yield (
        f"Batch 1, one thread, fp32, one pinned CPU, in turns, {document['seconds']:g} s each. "
        f"Measured {document['measured']} on "
        f"{machine['cpu']}, Python {machine['python']}, onnxruntime "
        f"{machine['packages'].get('onnxruntime')}, openvino "
        f"{machine['packages'].get('openvino')}, {loads(document)}. "
        f"The median of the pairs' ratios has to lie within 1 ± {AGREE:g}."
    )
    yield from ("", "| engine | tool | ours p50 ms | tool p50 ms | ratio | pairs from … to | |")
    yield "|---|---|---:|---:|---:|---:|---|"
    for pair in document["pairs"]:
        yield (
            f"| {pair['engine']} | {pair['tool']} | {pair['ours_ms']:.4g} | {pair['tool_ms']:.4g} "
            f"| {pair['ratio']:.3f} | {min(pair['ratios']):.3f} … {max(pair['ratios']):.3f} "
            f"| {'agrees' if pair['agrees'] else 'differs'} |"
        )
    yield from ("", "## What the Python call adds", "")
    for pair in document["pairs"]:
        if (call := pair["python"]) is not None:
            yield (
                f"- {pair['engine']}: {call['call_ms']:.4g} ms a call, of which OpenVINO's own "
                f"clock, which is what its tool reports, sees {call['own_clock_ms']:.4g} ms: "
                f"{1000 * (call['call_ms'] - call['own_clock_ms']):.0f} µs for the call. By that "
                f"clock the ratio to the tool is {call['own_clock_ratio']:.3f}."
            )
    yield from ("", "## What our loop and clock add", "")
    yield (
        f"CPU time of the calling thread, {document['overhead'][0]['blocks']} pairs of blocks of "
        f"{BLOCK} calls in turns; at most {100 * OVERHEAD:g} % of engines of 1 ms and more."
    )
    yield ""
    for row in document["overhead"]:
        yield f"- {row['engine']}: {row['cpu_ms']:.4g} ms a call, {100 * row['added']:+.3f} %"


if __name__ == "__main__":
    sys.exit(main())
