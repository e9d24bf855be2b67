"""What it costs to serve many departments from one process, by five ways of switching experts.

    python benchmarks/switching.py            # writes benchmarks/results/switching.{json,md}
    python benchmarks/switching.py --quick    # 1 and 3 departments at 64 px, prints only

ShuffleNetV2 1.0x with random experts of r = 4 (no claim of accuracy), ONNX Runtime on the CPU, one
thread, batch 1, 224 px; 1, 10 and 50 departments with one task each.

    kept open    `Switchboard` with a budget for all: fused engines, opened once
    on demand    `Switchboard` with no budget: each switch checks the hashes and opens the engine
    adapters     `Switchboard` with adapters: one session of W0, a small adapter a department
    template     no engine on disk: each switch fuses, fills the graph and opens that
    branch       one session for all, unfused: W0, and beside each pointwise convolution a low-rank
                 branch whose factors are inputs; the 3 × 3 stem's and the head's weights are
                 inputs too; a switch hands in other arrays
    trt open     `Switchboard` with a budget for all, TensorRT engines, where there is a GPU; not to
                 be laid beside the CPU's

In one process the ways take turns, in changing order: a switch to a random department, one call
that isn't counted, CALLS calls. Memory (unique set size, the growth since the imports) is that of
a fresh process for each way and number, with every department used once.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
from document import Conditions, loads, write
from onnx import helper

from lorkd_deploy.bundle.manifest import HEAD_TENSORS
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.switchboard import Switchboard
from lorkd_deploy.runtime import exporter

LIMITS_MS = {"kept open": 0.1, "on demand": 60.0}  # the most that a switch may cost
CALLS = 10
MIB = 2**20
Call = Callable[[Any], Any]


def session(model: bytes) -> onnxruntime.InferenceSession:
    """A session with the options of our ONNX target and one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Board:
    """Fused engines on disk, behind a `Switchboard`."""

    def __init__(self, bundle: Bundle, budget: float, **options: Any) -> None:
        self.board = Switchboard(bundle.path, budget=budget, **options)
        self.home = {task.name: task.department for task in bundle.manifest.tasks}

    @contextmanager
    def use(self, task: str) -> Iterator[Call]:
        with self.board.department(self.home[task], task) as engine:
            yield engine


class Adapters(Board):
    """Engines of one base and an adapter each, in a copy of the run: they'd take the fused ones'
    place."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(load_bundle(adapted_copy(bundle.path)), budget=1e9, adapters=True)


class Template:
    """The bundle alone: fuse, fill, open."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @contextmanager
    def use(self, task: str) -> Iterator[Call]:
        opened = [session(onnx_model(self.bundle, task))]
        yield lambda batch: opened[0].run(None, {"input": batch})[0]
        opened.clear()  # now, not when the caller forgets the function


class Branch:
    """One unfused session for all tasks; what differs is handed in with every call."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.session = session(with_branches(bundle))
        self.given: dict[str, dict[str, Any]] = {}

    @contextmanager
    def use(self, task: str) -> Iterator[Call]:
        if task not in self.given:
            self.given[task] = branch_inputs(self.bundle, task)
        own = self.given[task]
        yield lambda batch: self.session.run(None, {"input": batch, **own})[0]


WAYS: dict[str, Callable[[Bundle], Any]] = {
    "kept open": lambda bundle: Board(bundle, budget=1e9),
    "on demand": lambda bundle: Board(bundle, budget=0),
    "adapters": Adapters,
    "template": Template,
    "branch": Branch,
}
TRT = exporter("trt").probe()
if TRT.can_run:
    WAYS["trt open"] = lambda bundle: Board(bundle, budget=1e9, target="trt")


class WithoutDelta(Bundle):
    """The same bundle with every B zero: fusing gives W0 alone."""

    def expert(self, task: str) -> dict[str, Any]:
        own = super().expert(task)
        return {n: np.zeros_like(v) if n.endswith(".B") else v for n, v in own.items()}


def initializers(bundle: Bundle) -> dict[str, str]:
    """Source tensor → its initialiser in the graph."""
    return {b.source: b.initializer for b in bundle.manifest.graph.bindings}


def branch_inputs(bundle: Bundle, task: str) -> dict[str, Any]:
    """A task's own arrays by input name; norms are folded into B, so they have to be shared."""
    entry, own, fused = bundle.task(task), bundle.expert(task), bundle.fuse(task)
    assert entry.alpha is not None and entry.rank is not None
    names = initializers(bundle)
    folds = {fold.conv: fold for fold in bundle.manifest.folds}
    given = {names[part]: fused[names[part]] for part in HEAD_TENSORS}
    for layer in bundle.manifest.layers:
        weight = names[f"{layer.name}.weight"]
        if layer.shape[2:] != (1, 1):
            given[weight] = fused[weight]
            continue
        fold = folds[layer.name]
        norm = {part: bundle.base[f"{fold.norm}.{part}"] for part in ("weight", "running_var")}
        gain = norm["weight"] / np.sqrt(norm["running_var"].astype(np.float64) + fold.eps)
        b = own[f"{layer.name}.B"] * (gain * entry.alpha / entry.rank)[:, None]
        given[f"{weight}.A"] = own[f"{layer.name}.A"][..., None, None].astype(np.float32)
        given[f"{weight}.B"] = b[..., None, None].astype(np.float32)
    return given


def with_branches(bundle: Bundle) -> bytes:
    """W0's graph with a low-rank branch beside each pointwise convolution; see `branch_inputs`."""
    task = bundle.manifest.tasks[0].name
    plain = WithoutDelta(bundle.path, bundle.manifest, bundle.sha256)
    model = onnx.ModelProto.FromString(onnx_model(bundle, task, tensors=plain.fuse(task)))
    graph = model.graph
    given = branch_inputs(bundle, task)
    kept = [i for i in graph.initializer if i.name not in given]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    head = set(given) & {initializers(bundle)[p] for p in HEAD_TENSORS}
    for name, value in given.items():
        # Departments have different numbers of classes: those dimensions stay free.
        shape: list[Any] = list(value.shape)
        shape = [None if name in head and n != 1024 else n for n in shape]
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    del graph.value_info[:]
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Conv" and f"{node.input[1]}.A" in given:
            weight, out = node.input[1], node.output[0]
            node.output[0] = f"{out}.W0"
            nodes += [
                helper.make_node("Conv", [node.input[0], f"{weight}.A"], [f"{out}.low"]),
                helper.make_node("Conv", [f"{out}.low", f"{weight}.B"], [f"{out}.delta"]),
                helper.make_node("Add", [f"{out}.W0", f"{out}.delta"], [out]),
            ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def make_bundle(folder: Path, count: int, size: int) -> Bundle:
    """A bundle of `count` departments with its engines exported and proven below it."""
    from synthetic import as_bundle, inputs_logits, student

    from lorkd_deploy.training.bundling.graph_template import graph_template

    model = student("shared", count, size)
    pictures = parity_inputs(1, size, 0)
    template = graph_template(*model.dense(0), size)
    bundle = as_bundle(folder, model, template, pictures, inputs_logits(model, pictures))
    export(folder)
    copy = adapted_copy(folder)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("export"))
    export(copy, options={"adapters": True})
    return bundle


def adapted_copy(folder: Path) -> Path:
    """Where the same bundle's engines with adapters lie."""
    return folder.with_name(f"{folder.name}-adapters")


def measure(bundle: Bundle, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of every switch and call of each way, with `count` departments."""
    tasks = [task.name for task in bundle.manifest.tasks[:count]]
    size = bundle.manifest.preprocess.size
    batch = bundle.manifest.preprocess.normalise(parity_inputs(1, size, 0))
    ways = {name: make(bundle) for name, make in WAYS.items()}
    known = {task: bundle.logits(task)["inputs"] for task in tasks}
    off = dict.fromkeys(WAYS, 0.0)
    for name, way in ways.items():  # opens what is kept, and shows whose expert answers
        for task in tasks:
            with way.use(task) as call:
                off[name] = max(off[name], float(np.abs(call(batch) - known[task][:1]).max()))
    switches: dict[str, list[float]] = {name: [] for name in WAYS}
    calls: dict[str, list[float]] = {name: [] for name in WAYS}
    choose = random.Random(0)
    order = list(WAYS)
    for _ in range(rounds):
        choose.shuffle(order)
        for name in order:
            task = choose.choice(tasks)
            began = time.perf_counter()
            with ways[name].use(task) as call:
                switches[name].append(1e3 * (time.perf_counter() - began))
                call(batch)
                for _ in range(CALLS):
                    began = time.perf_counter()
                    call(batch)
                    calls[name].append(1e3 * (time.perf_counter() - began))
    return {"switch_ms": switches, "call_ms": calls, "max_abs_from_unfused": off}


def memory(folder: Path, way: str, count: int) -> float:
    """MiB that a fresh process grows by when `count` departments were used, in this one."""
    process = psutil.Process()
    session(trivial())  # the runtime's own first costs
    before = process.memory_full_info().uss
    bundle = load_bundle(folder)
    used = WAYS[way](bundle)
    size = bundle.manifest.preprocess.size
    batch = np.zeros((1, 3, size, size), np.float32)
    for task in bundle.manifest.tasks[:count]:
        with used.use(task.name) as call:
            call(batch)
    after: int = process.memory_full_info().uss
    return (after - before) / MIB


def trivial() -> bytes:
    """A model of one node."""
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def in_a_fresh_process(folder: Path, way: str, count: int) -> float:
    """`memory` of a process of its own."""
    command = [sys.executable, __file__, "--memory", way, "--count", str(count)]
    done = subprocess.run(
        [*command, "--bundle", str(folder)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="writes nothing")
    arguments.add_argument("--memory", help=argparse.SUPPRESS)
    arguments.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.memory:
        print(memory(given.bundle, given.memory, given.count))
        return 0
    numbers, size, rounds = ((1, 3), 64, 5) if given.quick else ((1, 10, 50), 224, 25)
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as name:
        bundle = make_bundle(Path(name) / "run", max(numbers), size)
        engine = bundle.path / "export" / "department0" / "task0" / "onnx-fp32" / "model.onnx"
        files = bundle.manifest.files
        expert = statistics.median(v.bytes for k, v in files.items() if k.startswith("experts/"))
        disk = dict.fromkeys(WAYS, expert / MIB)
        disk |= dict.fromkeys(("kept open", "on demand"), engine.stat().st_size / MIB)
        place = adapted_copy(bundle.path) / engine.parent.relative_to(bundle.path)
        disk["adapters"] = (place / "task.onnx_adapter").stat().st_size / MIB
        if TRT.can_run:
            built = export(bundle.path, "trt", task=["task0"])
            disk["trt open"] = sum(artifact.bytes for artifact in built) / MIB
        rows = {}
        for count in numbers:
            rows[count] = measure(bundle, count, rounds)
            rows[count]["memory_mib"] = {
                way: in_a_fresh_process(bundle.path, way, count) for way in WAYS
            }
    document = {
        "limits_ms": LIMITS_MS,
        "size_px": size,
        "rank": 4,
        "rounds": rounds,
        "calls": CALLS,
        "threads": 1,
        "batch": 1,
        "trt": "run" if TRT.can_run else f"not run here: {TRT.reason}",
        **conditions.now(),
        "disk_mib_a_department": disk,
        "departments": rows,
    }
    text = "\n".join(lines(document)) + "\n"
    print(text)
    if given.quick:
        return 0
    write("switching", document, text)
    held = all(
        statistics.median(row["switch_ms"][way]) <= most
        for row in rows.values()
        for way, most in LIMITS_MS.items()
    )
    return 0 if held else 1


def lines(document: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    machine = document["environment"]
    text = [
        "# What a switch of the department costs",
        "",
        f"ShuffleNetV2 1.0x, random experts of rank {document['rank']}, {document['size_px']} px, "
        f"ONNX Runtime {machine['packages'].get('onnxruntime')} on the CPU, batch 1, one thread; "
        f"{document['rounds']} switches a way in changing order, {document['calls']} calls after "
        f"each; medians. Measured {document['measured']} on {machine['cpu']}, "
        f"{machine['allowed_cpus']} CPUs, Python {machine['python']}; {loads(document)} (where "
        "it is above the number of CPUs, times hold waiting). `benchmarks/switching.py` says "
        "what the ways are.",
        "",
        "| departments | way | a switch, ms (max) | an inference, p50 ms | over kept open "
        "| memory, all, MiB | a department more, MiB | on disk a department, MiB "
        "| max difference |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = document["departments"]
    least = min(rows)
    for count, row in rows.items():
        fused = statistics.median(row["call_ms"]["kept open"])
        for way in WAYS:
            call = statistics.median(row["call_ms"][way])
            switch = row["switch_ms"][way]
            more = "–"
            if count > least:
                grown = row["memory_mib"][way] - rows[least]["memory_mib"][way]
                more = f"{grown / (count - least):.2f}"
            text.append(
                f"| {count} | {way} | {statistics.median(switch):.3f} ({max(switch):.3f}) "
                f"| {call:.2f} | {call / fused:.2f} × | {row['memory_mib'][way]:.1f} | {more} "
                f"| {document['disk_mib_a_department'][way]:.2f} "
                f"| {row['max_abs_from_unfused'][way]:.1e} |"
            )
    limits = ", ".join(f"{way} {most:g} ms" for way, most in document["limits_ms"].items())
    return [
        *text,
        "",
        f"Limits of a switch: {limits}. TensorRT was {document['trt']}.",
    ]


if __name__ == "__main__":
    sys.exit(main())
