"""Is our profiler right? Its p50 beside the runtimes' own tools, and what it says of known cases.

    python benchmarks/crosscheck.py RUN [--pairs 7] [--trials 20] [--seconds 1]

RUN needs engines: `lorkd export RUN --teacher`, and with `--target openvino` for its pairs. Every
pair measures one engine once with our worker and once with the runtime's own tool, in changing
order, on the same CPU with one thread and batch 1:

- ONNX Runtime: a bare loop over `InferenceSession.run` in a process of its own
- OpenVINO: `benchmark_app -hint latency -api sync`, whose one CPU gives it one thread
- TensorRT: `trtexec --loadEngine`, where it and such engines are

Then, by the benchmark's own rounds: an engine that sleeps 20 % of its p50 beside itself (has to be
called slower in every trial), an identical copy (different in at most 1 of 20), and what the loop
and its clock cost around a call that does nothing. Below five minutes on a quiet machine; on a busy
one the figures say little. Writes benchmarks/results/crosscheck.json and .md, exits with 1 where a
bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts
from lorkd_deploy.profiling.environment import environment
from lorkd_deploy.profiling.process import EngineProcess
from lorkd_deploy.profiling.schedule import choose_cpus
from lorkd_deploy.profiling.summary import LEAST_ROUNDS, RoundCalls, batch_ratio, timing
from lorkd_deploy.profiling.worker import _timed_calls

RESULTS = Path(__file__).parent / "results"
AGREE = 0.05  # of the median pair
OVERHEAD = 0.01  # of an engine of 1 ms
SLEEP = 0.2  # of the engine's p50
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
SLOWED = """
import time
from lorkd_exporters import onnx
from lorkd_exporters.onnx import probe

def open(folder, files, options):
    return Slowed(onnx.open(folder, files, options), float((folder / "sleep").read_text()))

class Slowed:
    def __init__(self, runner, seconds):
        self.runner, self.seconds, self.facts = runner, seconds, runner.facts

    def __call__(self, batch):
        logits = self.runner(batch)
        time.sleep(self.seconds)
        return logits

    def close(self):
        self.runner.close()
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
    for number in range(count):
        if number % 2:
            theirs = tool(engine, setting)
            found.append((ours(engine, setting), theirs))
        else:
            own = ours(engine, setting)
            found.append((own, tool(engine, setting)))
    ratios = [own / theirs for own, theirs in found]
    return {
        "engine": engine.name,
        "tool": name,
        "ours_ms": statistics.median(own for own, _ in found),
        "tool_ms": statistics.median(theirs for _, theirs in found),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "agrees": abs(statistics.median(ratios) - 1) <= AGREE,
    }


def slowed_copy(engine: Artifact, setting: Setting, p50: float) -> Artifact:
    """The same engine with a sleep after every call, as a target of its own."""
    site, folder = setting.folder / "site", setting.folder / "slowed"
    info = site / "lorkd_crosscheck-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lorkd_crosscheck.py").write_text(SLOWED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lorkd-crosscheck\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lorkd_deploy.exporters]\ncrosscheck = lorkd_crosscheck\n"
    )
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *([others] if others else [])])
    shutil.copytree(engine.folder, folder)
    (folder / "sleep").write_text(str(SLEEP * p50 / 1000))
    return engine.model_copy(update={"folder": folder, "target": "crosscheck"})


def trust(engine: Artifact, setting: Setting, trials: int) -> dict[str, Any]:
    """What five interleaved rounds say of a slowed engine and of a copy, beside the engine."""
    copy = setting.folder / "copy"
    shutil.copytree(engine.folder, copy)
    same = engine.model_copy(update={"folder": copy})
    p50 = ours(engine, setting)
    slow = slowed_copy(engine, setting, p50)
    verdicts: dict[str, list[str]] = {"slowed": [], "copy": []}
    ratios: dict[str, list[float]] = {"slowed": [], "copy": []}
    generator = np.random.default_rng(0)
    three = {"engine": engine, "slowed": slow, "copy": same}
    for _ in range(trials):
        rounds: dict[str, list[RoundCalls]] = {name: [] for name in three}
        for _ in range(LEAST_ROUNDS):
            for index in generator.permutation(len(three)):
                name = list(three)[index]
                rounds[name].append(one_round(three[name], setting, setting.seconds / 6))
        for name, said in verdicts.items():
            found = batch_ratio(timing(1, rounds["engine"]), timing(1, rounds[name]))
            said.append(found.verdict)
            ratios[name].append(found.ratio.value)
    slower = verdicts["slowed"].count("slower")
    differ = trials - verdicts["copy"].count("no difference shown")
    return {
        "engine": engine.name,
        "p50_ms": p50,
        "trials": trials,
        "rounds": LEAST_ROUNDS,
        "called_slower": slower,
        "called_different": differ,
        "ratios": ratios,
        "holds": slower == trials and differ <= trials / 20,
    }


def overhead() -> dict[str, Any]:
    """What the clock and the loop add to a call, µs: the time of a call that does nothing."""
    calls = _timed_calls(lambda _: None, np.zeros((1, 3, 8, 8), np.float32), 20_000, 0)
    micros = float(np.median(np.asarray(calls))) / 1e3
    return {"call_us": micros, "of_1_ms": micros / 1e3, "holds": micros / 1e3 <= OVERHEAD}


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
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement in a pair")
    asked = parser.parse_args()
    engines = list(engines_of(asked.run))
    expert = next(e for e in engines if e.target == "onnx" and e.engine != "teacher")
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(asked.seconds, Path(folder))
        document: dict[str, Any] = {
            "pairs": [pairs(engine, setting, asked.pairs) for engine in engines],
            "trust": trust(expert, setting, asked.trials),
            "overhead": overhead(),
            "seconds": asked.seconds,
            "environment": environment().model_dump(mode="json"),
            "load_average": {"before": before, "after": os.getloadavg()},
        }
    text = "\n".join(_report(document)) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crosscheck.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "crosscheck.md").write_text(text, encoding="utf-8")
    print(text)
    agree = all(pair["agrees"] for pair in document["pairs"])
    return 0 if agree and document["trust"]["holds"] and document["overhead"]["holds"] else 1


def _report(document: dict[str, Any]) -> Iterator[str]:
    machine, load = document["environment"], document["load_average"]
    yield from ("# Our profiler beside the runtimes' own tools", "")
    yield (
        f"Batch 1, one thread, fp32, one pinned CPU, in turns, {document['seconds']:g} s each. "
        f"{machine['cpu']}, load average {load['before'][0]:.1f} at the start and "
        f"{load['after'][0]:.1f} at the end. The median of the pairs' ratios has to lie within "
        f"1 ± {AGREE:g}."
    )
    yield from ("", "| engine | tool | ours p50 ms | tool p50 ms | ratio | pairs from … to | |")
    yield "|---|---|---:|---:|---:|---:|---|"
    for pair in document["pairs"]:
        yield (
            f"| {pair['engine']} | {pair['tool']} | {pair['ours_ms']:.4g} | {pair['tool_ms']:.4g} "
            f"| {pair['ratio']:.3f} | {min(pair['ratios']):.3f} … {max(pair['ratios']):.3f} "
            f"| {'agrees' if pair['agrees'] else 'differs'} |"
        )
    found, cost = document["trust"], document["overhead"]
    yield from ("", "## Known cases", "")
    yield (
        f"- {found['engine']} ({found['p50_ms']:.3g} ms) with a sleep of {100 * SLEEP:g} % of its "
        f"p50: called slower in {found['called_slower']} of {found['trials']} trials of "
        f"{found['rounds']} rounds."
    )
    yield (
        f"- An identical copy: called different in {found['called_different']} of "
        f"{found['trials']}."
    )
    yield (
        f"- A call that does nothing takes {cost['call_us']:.2f} µs with the loop and the clock: "
        f"{100 * cost['of_1_ms']:.3f} % of an engine of 1 ms."
    )


if __name__ == "__main__":
    sys.exit(main())
