"""Does the profiler see a slower engine, and nothing in an equal one?

    python benchmarks/decisions.py RUN [--trials 20] [--seconds 0.2]

RUN needs an expert's engine: `lorkd export RUN`. A trial is five rounds in the benchmark's own
order, each engine in a fresh process on one pinned CPU, batch 1, one thread, of three engines: the
expert's, an identical copy of its folder, and one that sleeps 20 % of the engine's p50 after every
call. Its verdicts are those that the benchmark gives (`profiling/summary.py`): a difference only
where the 95 % interval of the round-paired ratio lies wholly outside 1 ± 2 %.

The slowed one has to be called slower in every trial, the copy different in at most one of 20.
Rounds are shorter than the benchmark's, which makes it harder. Below five minutes on a quiet
machine. Writes benchmarks/results/decisions.json and .md, exits with 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts
from lorkd_deploy.profiling.environment import environment
from lorkd_deploy.profiling.process import EngineProcess
from lorkd_deploy.profiling.schedule import choose_cpus, orders
from lorkd_deploy.profiling.summary import (
    LEAST_ROUNDS,
    MARGIN,
    RoundCalls,
    batch_ratio,
    percentile,
    timing,
)

RESULTS = Path(__file__).parent / "results"
SLEEP = 0.2  # of the engine's p50
WRONG = 1 / 20  # of the trials may call the copy different
ITERATIONS, WARMUP = 20, 20
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


def one_round(engine: Artifact, seconds: float) -> RoundCalls:
    """A round as the benchmark measures it, at batch 1."""
    shape = [1, 3, engine.preprocess.size, engine.preprocess.size]
    with EngineProcess(engine, 1, choose_cpus(1)) as process:
        process.open()
        process.ask("first", shape=shape, seed=0)
        _, calls = process.ask(
            "measure",
            shape=shape,
            seed=0,
            iterations=ITERATIONS,
            seconds=seconds,
            warmup=WARMUP,
        )
    return RoundCalls(np.frombuffer(calls, np.int64))


def slowed_copy(engine: Artifact, folder: Path, p50: float) -> Artifact:
    """The same engine with a sleep after every call, as a target of its own."""
    site, place = folder / "site", folder / "slowed"
    info = site / "lorkd_slowed-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lorkd_slowed.py").write_text(SLOWED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lorkd-slowed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lorkd_deploy.exporters]\nslowed = lorkd_slowed\n")
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *([others] if others else [])])
    shutil.copytree(engine.folder, place)
    (place / "sleep").write_text(str(SLEEP * p50 / 1000))
    return engine.model_copy(update={"folder": place, "target": "slowed"})


def trial(engines: dict[str, Artifact], seconds: float, seed: int) -> dict[str, Any]:
    """What five interleaved rounds say of each beside `engine`: ratio, its interval, verdict."""
    rounds: dict[str, list[RoundCalls]] = {name: [] for name in engines}
    for order in orders(list(engines), LEAST_ROUNDS, seed):
        for name in order:
            rounds[name].append(one_round(engines[name], seconds))
    base = timing(1, rounds["engine"])
    return {
        name: batch_ratio(base, timing(1, parts)).model_dump(mode="json")
        for name, parts in rounds.items()
        if name != "engine"
    }


def expert_of(run: Path) -> Artifact:
    """The first expert's fp32 engine for ONNX Runtime."""
    for engine in find_artifacts(run):
        if (engine.target, engine.precision) == ("onnx", "fp32") and engine.engine != "teacher":
            check_files(engine)
            return engine
    raise SystemExit(f"there is no expert's onnx-fp32 engine in {run}: lorkd export it")


def measure(engine: Artifact, trials: int, seconds: float) -> dict[str, Any]:
    """All trials, and how often each was called what."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(engine.folder, folder / "copy")
        p50 = percentile(one_round(engine, seconds).calls, 50)
        three = {
            "engine": engine,
            "slowed": slowed_copy(engine, folder, p50),
            "copy": engine.model_copy(update={"folder": folder / "copy"}),
        }
        found = [trial(three, seconds, seed) for seed in range(trials)]
    slower = sum(one["slowed"]["verdict"] == "slower" for one in found)
    different = sum(one["copy"]["verdict"] != "no difference shown" for one in found)
    return {
        "engine": engine.name,
        "p50_ms": p50,
        "trials": found,
        "called_slower": slower,
        "called_different": different,
        "holds": slower == trials and different <= WRONG * trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a round")
    asked = parser.parse_args()
    before, began = os.getloadavg(), time.monotonic()
    document = measure(expert_of(asked.run), asked.trials, asked.seconds) | {
        "rounds": LEAST_ROUNDS,
        "seconds": asked.seconds,
        "took_s": round(time.monotonic() - began, 1),
        "environment": environment().model_dump(mode="json"),
        "load_average": {"before": before, "after": os.getloadavg()},
    }
    text = "\n".join(_report(document)) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decisions.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "decisions.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if document["holds"] else 1


def _report(document: dict[str, Any]) -> Iterator[str]:
    machine, load, trials = (document[k] for k in ("environment", "load_average", "trials"))
    yield from ("# A slowed engine and an identical copy", "")
    yield (
        f"{document['engine']} ({document['p50_ms']:.3g} ms), {len(trials)} trials of "
        f"{document['rounds']} interleaved rounds, {document['seconds']:g} s a round, batch 1, one "
        f"thread, one pinned CPU. {machine['cpu']}, load average {load['before'][0]:.1f} at the "
        f"start and {load['after'][0]:.1f} at the end, {document['took_s']:g} s. A difference is "
        f"called where the 95 % interval of the round-paired ratio lies wholly outside "
        f"1 ± {MARGIN:g}."
    )
    yield from ("", "| beside the engine | called | ratio, median of trials | from … to |")
    yield "|---|---|---:|---:|"
    names = {
        "slowed": (f"slowed by {100 * SLEEP:g} % of its p50", "slower", document["called_slower"]),
        "copy": ("an identical copy", "different", document["called_different"]),
    }
    for key, (what, verdict, count) in names.items():
        ratios = [one[key]["ratio"]["value"] for one in trials]
        yield (
            f"| {what} | {verdict} in {count} of {len(trials)} | {statistics.median(ratios):.3f} "
            f"| {min(ratios):.3f} … {max(ratios):.3f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
