"""Does the profiler see a slower engine, and nothing in an equal one?

    python benchmarks/decisions.py RUN [--trials 20] [--seconds 0.2]

RUN needs an expert's engine: `lorkd export RUN`. A trial is ten rounds, as `--assert` takes, each
measured as the benchmark does (`profiling/rounds/`: a fresh process on one pinned CPU, disturbed
rounds repeated, here once), batch 1, one thread, of three engines: the expert's, an identical copy
of its folder, and one that sleeps 20 % of the engine's p50 after every call. Its verdicts are those
that the benchmark gives (`profiling/summary.py`): a difference only where the 95 % interval of the
round-paired ratio lies wholly outside 1 ± 2 %.

The slowed one has to be called slower in every trial, the copy different in at most one of 20.
Rounds are shorter than the benchmark's and repeated less often, which makes it harder. Twelve to
twenty-five minutes. Writes benchmarks/results/decisions.json and .md, exits with 1 where a bound is
missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from document import Conditions, loads, write

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.power import open_power
from lorkd_deploy.profiling.gates import ROUNDS
from lorkd_deploy.profiling.planning.protocol import Protocol, orders, protocol_of
from lorkd_deploy.profiling.resampling import MARGIN
from lorkd_deploy.profiling.rounds.round import Instruments, Round, measure_round
from lorkd_deploy.profiling.summary import batch_ratio
from lorkd_deploy.profiling.timing import timing
from lorkd_deploy.profiling.worker.stages import draw_image
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import open_run

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


class Bench:
    """The benchmark's way of measuring a round, at batch 1 alone."""

    def __init__(self, run: Path, engine: Artifact, seconds: float, folder: Path) -> None:
        bundle = load_bundle(open_run(run).bundle)
        recipe = parse_recipe(bundle.manifest.recipe, where=bundle.path)
        given = {"rounds": ROUNDS, "seconds": seconds, "iterations": ITERATIONS, "warmup": WARMUP,
                 "largest_batch": 0, "uncached": False}  # fmt: skip
        size = bundle.manifest.preprocess.size
        known = protocol_of(recipe.benchmark, [engine.name], size, given)
        self.protocol: Protocol = known.model_copy(update={"batch_sizes": (1,), "repeats": 1})
        self.image = folder / "image.png"
        draw_image(self.image, 0)
        gpus = Gpus()
        self.instruments = Instruments(open_power(gpus), gpus)

    def round(self, engine: Artifact) -> Round:
        return measure_round(engine, self.protocol, self.image, self.instruments)


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


def trial(bench: Bench, engines: dict[str, Artifact], seed: int) -> dict[str, Any]:
    """What interleaved rounds say of each beside `engine`: ratio, its interval, verdict."""
    rounds: dict[str, list[Round]] = {name: [] for name in engines}
    for order in orders(list(engines), ROUNDS, seed):
        for name in order:
            rounds[name].append(bench.round(engines[name]))
    timings = {
        name: timing(1, [part.batches[1] for part in parts]) for name, parts in rounds.items()
    }
    found: dict[str, Any] = {
        name: batch_ratio(timings["engine"], one).model_dump(mode="json")
        for name, one in timings.items()
        if name != "engine"
    }
    states = [part.conditions for parts in rounds.values() for part in parts]
    return found | {
        "repeated": sum(state.attempts > 1 for state in states),
        "disturbed": sum(state.disturbed for state in states),
        "engine_round_p50_ms": timings["engine"].round_p50,
    }


def expert_of(run: Path) -> Artifact:
    """The first expert's fp32 engine for ONNX Runtime."""
    for engine in find_artifacts(run):
        if (engine.target, engine.precision) == ("onnx", "fp32") and engine.engine != "teacher":
            check_files(engine)
            return engine
    raise SystemExit(f"there is no expert's onnx-fp32 engine in {run}: lorkd export it")


def measure(run: Path, trials: int, seconds: float) -> dict[str, Any]:
    """All trials, and how often each was called what."""
    engine = expert_of(run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(run, engine, seconds, folder)
        shutil.copytree(engine.folder, folder / "copy")
        p50 = timing(1, [bench.round(engine).batches[1] for _ in range(ROUNDS)]).p50.value
        three = {
            "engine": engine,
            "slowed": slowed_copy(engine, folder, p50),
            "copy": engine.model_copy(update={"folder": folder / "copy"}),
        }
        found: list[dict[str, Any]] = []
        for seed in range(trials):
            found.append(one := trial(bench, three, seed))
            said = (
                f"trial {seed + 1} of {trials}: slowed is {one['slowed']['verdict']}, copy "
                f"{one['copy']['verdict']}, {one['repeated']} rounds repeated"
            )
            print(said, file=sys.stderr, flush=True)
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
    conditions, began = Conditions(), time.monotonic()
    document = measure(asked.run, asked.trials, asked.seconds) | {
        "rounds": ROUNDS,
        "seconds": asked.seconds,
        "took_s": round(time.monotonic() - began, 1),
        **conditions.now(),
    }
    text = "\n".join(_report(document)) + "\n"
    write("decisions", document, text)
    print(text)
    return 0 if document["holds"] else 1


def _report(document: dict[str, Any]) -> Iterator[str]:
    machine, trials = document["environment"], document["trials"]
    yield from ("# A slowed engine and an identical copy", "")
    yield (
        f"{document['engine']} ({document['p50_ms']:.3g} ms), {len(trials)} trials of "
        f"{document['rounds']} interleaved rounds, {document['seconds']:g} s a round, batch 1, one "
        f"thread, one pinned CPU. Measured {document['measured']} on {machine['cpu']}, Python "
        f"{machine['python']}, onnxruntime {machine['packages'].get('onnxruntime')}, "
        f"{loads(document)}, {document['took_s']:g} s. A difference is "
        f"called where the 95 % interval of the round-paired ratio lies wholly outside "
        f"1 ± {MARGIN:g}."
    )
    yield from ("", "| beside the engine | called | ratio, median of trials | from … to |")
    yield "|---|---|---:|---:|"
    names = {
        "slowed": (
            f"with a sleep of {100 * SLEEP:g} % of its p50 asked for",
            "slower",
            document["called_slower"],
        ),
        "copy": ("an identical copy", "different", document["called_different"]),
    }
    for key, (what, verdict, count) in names.items():
        ratios = [one[key]["ratio"]["value"] for one in trials]
        yield (
            f"| {what} | {verdict} in {count} of {len(trials)} | {statistics.median(ratios):.3f} "
            f"| {min(ratios):.3f} … {max(ratios):.3f} |"
        )
    repeated, disturbed = (sum(one[key] for one in trials) for key in ("repeated", "disturbed"))
    every = len(trials) * document["rounds"] * 3
    yield ""
    yield (
        f"A ratio is the engine's p50 over the other's; a sleep takes longer than it is asked for. "
        f"Of {every} rounds {repeated} were repeated, once each, as the machine was disturbed, and "
        f"{disturbed} stayed so."
    )


if __name__ == "__main__":
    sys.exit(main())
