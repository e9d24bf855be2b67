"""What each part of a safe answer costs, beside the bare engine, interleaved.

    python benchmarks/parts_latency.py RUN --task T [--targets onnx openvino] [--rounds 15]

RUN has a bundle with `safety` guard, coverage and explain. Of the task's model four engines are
built below a temporary folder: logits alone, with the guard's features, with maps, with both. Each
is called with one image by the way of `lorkd predict` (`Answering`), so that what follows the
engine is in the time: the guard's distance, softmax, sets, and a line of the audit log, flushed to
the disk (of the temporary folder). Every round has every variant once, forwards and backwards in
turn (`deploy.auto.interleaved`); a ratio is that of the medians of one round, its interval 2.5 to
97.5 % of a bootstrap over rounds. One thread. It needs a quiet machine: it refuses where
the load is above a quarter of the cores, unless `--anyway`, which the result then says.
Writes benchmarks/results/parts_latency.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any

import numpy as np
import onnx

from lorkd_deploy import AuditLog, load_bundle
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.answers.answering import Answering
from lorkd_deploy.deploy.artifact import engine_tasks
from lorkd_deploy.deploy.graphs.graph import leave_out, onnx_model
from lorkd_deploy.deploy.precision.auto import interleaved
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.profiling.resampling import by_rounds
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import FEATURES, MAPS, EngineSpec, Runner, RunOptions, exporter

RESULTS = pathlib.Path(__file__).parent / "results"
BARE = "logits alone, answered"
ENGINES = {"logits": (FEATURES, MAPS), "guard": (MAPS,), "maps": (FEATURES,), "both": ()}
# What is called: the engine, whether the guard looks, whether sets and maps are asked for.
VARIANTS = {
    BARE: ("logits", False, False, False),
    "guard": ("guard", True, False, False),
    "guard's features, nobody looks": ("guard", False, False, False),
    "coverage": ("logits", False, True, False),
    "maps, asked for": ("maps", False, False, True),
    "maps, nobody asks": ("maps", False, False, False),
    "guard, coverage and maps": ("both", True, True, True),
}


class Called:
    """One way to answer an image, as `interleaved` wants it."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def __call__(self, batch: Any) -> Any:
        return self._call(batch)


def built(bundle: Bundle, task: str, target: str, left: tuple[str, ...], folder: Any) -> Runner:
    """The task's engine without the outputs `left` out."""
    model = onnx.ModelProto.FromString(onnx_model(bundle, task, explain=True))
    for name in left:
        leave_out(model.graph, name)
    folder.mkdir(parents=True)
    source = folder / "source.onnx"
    source.write_bytes(model.SerializeToString(deterministic=True))
    files = exporter(target).export(source, folder, EngineSpec()).files
    return exporter(target).open(folder, files, RunOptions(threads=1))


def ratio(own: Any, other: Any) -> dict[str, float]:
    """Median of `own / other` by round, with its interval."""
    each = np.asarray(own) / np.asarray(other)
    return by_rounds(each, value=float(np.median(each))).model_dump()


def of_target(bundle: Bundle, task: str, target: str, rounds: int) -> dict[str, Any]:
    entry = engine_tasks(bundle.engine(task))[0]
    size, seed = bundle.manifest.preprocess.size, 0
    one = bundle.manifest.preprocess.normalise(parity_inputs(1, size, seed))
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        open_ones = {
            name: stack.enter_context(built(bundle, task, target, left, folder / name))
            for name, left in ENGINES.items()
        }
        calls: dict[str, Any] = {"the engine's own call": open_ones["logits"]}
        for name, (engine, guard, coverage, maps) in VARIANTS.items():
            answering = Answering(bundle, entry, guard=guard, coverage=0.9 if coverage else None)
            ask = answering.explained if maps else answering
            calls[name] = Called(lambda batch, ask=ask, e=open_ones[engine]: ask(e, batch))
        log = AuditLog(folder / "answers.jsonl")
        plain = Answering(bundle, entry, guard=False)

        def logged(batch: Any) -> Any:
            (answer,) = plain(open_ones["logits"], batch)
            log.append({"task": task, **answer.model_dump(mode="json")})
            return answer

        calls["audit log"] = Called(logged)
        times = interleaved(calls, one, rounds=rounds, seconds=0.3)
    return {
        name: {"p50_ms": float(np.median(each)), "ratio": ratio(each, times[BARE]), "rounds": each}
        for name, each in times.items()
    }


def markdown(found: dict[str, Any]) -> Iterator[str]:
    yield "# What each part of a safe answer costs"
    yield ""
    yield (
        f"{found['architecture']} at {found['size']} px, task {found['task']}, one thread, one "
        f"image a call, {found['rounds']} rounds, {found['environment']['cpu']}, "
        f"measured {found['measured']}. The protocol stands in `benchmarks/parts_latency.py`."
    )
    if found["load"] > found["quiet"]:
        yield f"\n**The machine was busy (load {found['load']:.1f}): read nothing into this.**"
    for target, parts in found["targets"].items():
        yield f"\n## {target}\n\n| | ms | × {BARE} |\n|---|---|---|"
        for name, part in parts.items():
            r = part["ratio"]
            shown = f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})"
            yield f"| {name} | {part['p50_ms']:.3f} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--targets", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--anyway", action="store_true", help="on a busy machine too")
    given = parser.parse_args()
    load, quiet = os.getloadavg()[0], (os.cpu_count() or 1) / 4
    if load > quiet and not given.anyway:
        parser.error(f"the load is {load:.1f}, at most {quiet:.1f} is quiet; --anyway to measure")
    bundle = load_bundle(open_run(given.run).bundle)
    found = {
        "bundle": bundle.sha256,
        "architecture": bundle.manifest.architecture,
        "size": bundle.manifest.preprocess.size,
        "task": given.task,
        "rounds": given.rounds,
        "load": load,
        "quiet": quiet,
        "targets": {
            target: of_target(bundle, given.task, target, given.rounds) for target in given.targets
        },
        "versions": bundle.manifest.versions,
        "environment": environment().model_dump(mode="json"),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = json.dumps(found, indent=1, sort_keys=True)
    (RESULTS / "parts_latency.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "parts_latency.md").write_text("\n".join([*markdown(found), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
