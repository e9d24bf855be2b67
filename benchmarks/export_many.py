"""Ten experts' engines from one graph, against ten separate exports; and what experts share.

    python benchmarks/export_many.py            # writes benchmarks/results/export_many.{json,md}
    python benchmarks/export_many.py --quick    # two experts at 64 px, prints only

The papers' ten MedMNIST tasks on ShuffleNetV2 1.0x, r = 4, with random factors and norm statistics
(neither time nor size depends on training). Everything runs in one process, after a small export
that loads the exporters, and the two ways take turns, expert by expert. A separate export starts
from a dense torch copy of one expert, as one would without a bundle:

    target     separate                                        ours
    ONNX       torch.onnx.export(dynamo=True)                  fuse, fill the graph, check it
    OpenVINO   convert_model(torch module) + save_model        the same, then read and save IR
               convert_model(fused ONNX file) + save_model     (where that file is there already)
    TRT-RTX    torch.onnx.export, then the build               fuse, fill, check, then the build

Ours includes fusing and ends in files, as `lorkd export` without the parity run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from document import Conditions, loads, write
from synthetic import RECIPE, as_bundle, inputs_logits, student
from torch import nn

from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.runtime import EngineSpec, exporter
from lorkd_deploy.storage import write_tensors
from lorkd_deploy.training.bundling.graph_template import graph_template

# A ratio is ours over the separate way's; `onnx_times_faster` is its inverse for all experts.
MOST = {
    "onnx_s_an_expert": 0.2,
    "openvino_ratio_an_expert": 0.2,
    "fuse_s_an_expert": 0.05,
    "size_ratio_shared": 1.5,
    "size_ratio_per_task": 1.75,
}
LEAST = {"onnx_times_faster": 6.0}
WORTH = 0.1  # of the models' bytes: what one weights file for all would have to save
RTX = EngineSpec("fp32", {"compute_capabilities": ["SM86"]})
Seconds = dict[str, list[float]]


def timed(times: list[float], action: Callable[[], Any]) -> Any:
    """What `action` gives; its wall-clock seconds go into `times`."""
    began = time.perf_counter()
    result = action()
    times.append(time.perf_counter() - began)
    return result


def dense(model: ExpertClassifier, task: int) -> nn.Module:
    """One expert as a plain torch module."""
    backbone, head = model.dense(task)
    return nn.Sequential(backbone, head).eval()


def by_torch(module: nn.Module, file: Path, size: int) -> None:
    """A separate export to ONNX."""
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, size, size),),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        input_names=["input"],
        output_names=["output"],
        opset_version=RECIPE.export.opset,
        verbose=False,
    )


def by_openvino(source: Any, file: Path, size: int | None = None) -> None:
    """A separate export to IR; `source` is a torch module (then with `size`) or an ONNX file."""
    import openvino

    example = {} if size is None else {"example_input": torch.zeros(2, 3, size, size)}
    found = openvino.convert_model(source, **example)
    openvino.save_model(found, file, compress_to_fp16=False)


def run_onnx(file: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(file).run(None, {"input": x})[0]


def run_openvino(file: Path, x: Any) -> Any:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(file, "CPU", exact)([x])[0]


class Routes:
    """The ways that can be taken on this machine, their seconds and their errors, by name."""

    def __init__(self, model: ExpertClassifier, bundle: Bundle, folder: Path, size: int) -> None:
        self.model, self.bundle, self.folder, self.size = model, bundle, folder, size
        self.seconds: Seconds = {}
        self.off: dict[str, float] = {}
        self.able = {t for t in ("openvino", "trt-rtx") if exporter(t).probe().can_build}

    def expert(self, task: int, x: Any, expected: Any) -> None:
        """Take every route for one expert; who goes first changes with the task."""
        name, module = self.bundle.manifest.tasks[task].name, dense(self.model, task)
        ours, theirs = self.folder / f"ours{task}.onnx", self.folder / f"torch{task}.onnx"
        routes: list[tuple[str, Callable[[], Any]]] = [
            ("onnx ours", lambda: ours.write_bytes(onnx_model(self.bundle, name))),
            ("onnx separate", lambda: by_torch(module, theirs, self.size)),
        ]
        self._take(routes[:: -1 if task % 2 else 1])
        self._off("onnx ours", run_onnx(ours, x), expected)
        self._off("onnx separate", run_onnx(theirs, x), expected)
        if "openvino" in self.able:
            self._openvino(task, name, module, ours)
            for way in ("ours", "separate", "converted"):
                found = run_openvino(self.folder / f"{way}{task}" / "model.xml", x)
                self._off(f"openvino {way}", found, expected)
        if "trt-rtx" in self.able:
            sides = [("build ours", ours), ("build separate", theirs)]
            for way, source in sides[:: -1 if task % 2 else 1]:
                out = self._new(f"rtx {way}{task}")
                self._take([(way, lambda s=source, o=out: self._built("trt-rtx", s, o, RTX))])

    def _openvino(self, task: int, name: str, module: nn.Module, filled: Path) -> None:
        places = {way: self._new(f"{way}{task}") for way in ("ours", "separate", "converted")}
        source = self.folder / "fused.onnx"

        def ours() -> None:
            source.write_bytes(onnx_model(self.bundle, name))
            self._built("openvino", source, places["ours"], EngineSpec())

        def separate() -> None:
            by_openvino(module, places["separate"] / "model.xml", self.size)

        def converted() -> None:
            by_openvino(filled, places["converted"] / "model.xml")

        def read_and_saved() -> None:
            self._built("openvino", filled, self._new(f"again{task}"), EngineSpec())

        routes: list[tuple[str, Callable[[], Any]]] = [
            ("openvino ours", ours),
            ("openvino separate", separate),
            ("openvino converted", converted),
            ("openvino ours, from the same file", read_and_saved),
        ]
        self._take(routes[:: -1 if task % 2 else 1])

    def _take(self, routes: list[tuple[str, Callable[[], Any]]]) -> None:
        for name, route in routes:
            timed(self.seconds.setdefault(name, []), route)

    def _built(self, target: str, source: Path, out: Path, spec: EngineSpec) -> None:
        exporter(target).export(source, out, spec)

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _off(self, name: str, found: Any, expected: Any) -> None:
        self.off[name] = max(self.off.get(name, 0.0), float(np.abs(found - expected).max()))


def shared_by_all(bundle: Bundle) -> dict[str, Any]:
    """Bytes of the initialisers that are the same in every expert's model, and of one model."""
    tensors = [bundle.fuse(task.name) for task in bundle.manifest.tasks]
    same = [
        name
        for name, value in tensors[0].items()
        if all(np.array_equal(other[name], value) for other in tensors[1:])
    ]
    model = len(onnx_model(bundle, bundle.manifest.tasks[0].name))
    common = sum(tensors[0][name].nbytes for name in same)
    count = len(tensors)
    return {
        "initialisers": len(tensors[0]),
        "same_in_all": len(same),
        "same_bytes": common,
        "model_bytes": model,
        "saved_of_all_models": (count - 1) * common / (count * model),
    }


def sizes(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Bytes of a bundle by kind of file, and of one dense fp32 expert (mean over the tasks)."""
    kinds: dict[str, int] = {"manifest.json": (bundle.path / "manifest.json").stat().st_size}
    for name, entry in bundle.manifest.files.items():
        kind = name.split("/")[0]
        kinds[kind] = kinds.get(kind, 0) + entry.bytes
    experts = []
    for task in bundle.manifest.tasks:
        file = folder / "dense.safetensors"
        state = bundle.dense(task.name)
        write_tensors(file, {k: v.astype(np.float32) for k, v in state.items()})
        experts.append(file.stat().st_size)
    total = sum(kinds.values())
    return {
        "bytes": kinds,
        "total_bytes": total,
        "dense_expert_bytes": statistics.mean(experts),
        "ratio": total / statistics.mean(experts),
        "shared": shared_by_all(bundle),
    }


def measure(count: int, size: int, folder: Path) -> dict[str, Any]:
    """All figures for `count` experts at `size` px."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # `convert_model` reports
    warnings.simplefilter("ignore")  # of the exporters, once a call
    pictures = parity_inputs(RECIPE.parity.inputs if count > 2 else 4, size, 0)
    model = student("shared", count, size)
    logits = inputs_logits(model, pictures)
    small = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    graph_template(small[:3], small[3], 16)  # what loads on first use is in nobody's time
    by_torch(small.eval(), folder / "small.onnx", 16)
    if exporter("openvino").probe().can_build:
        by_openvino(small.eval(), folder / "small.xml", 16)
    graph_s: list[float] = []
    template = timed(graph_s, lambda: graph_template(*model.dense(0), size))
    images = RECIPE.parity.test_images
    bundle = as_bundle(folder / "shared", model, template, pictures, logits, images=images)
    routes = Routes(model, bundle, folder, size)
    x = RECIPE.preprocess.normalise(pictures)
    for task in range(count):
        routes.expert(task, x, logits[task])
    fuse_s: list[float] = []
    for entry in [*bundle.manifest.tasks] * 5:
        timed(fuse_s, lambda name=entry.name: bundle.fuse(name))
    own = student("per_task", count, size)
    template = graph_template(*copy.deepcopy(own).dense(0), size)
    per_task = as_bundle(
        folder / "per_task", own, template, pictures, logits, norm="per_task", images=images
    )
    return {
        "experts": count,
        "size_px": size,
        "graph_s": graph_s[0],
        "seconds": {**routes.seconds, "fuse": fuse_s},
        "max_abs_from_unfused": routes.off,
        "max_abs_logit": max(float(np.abs(part).max()) for part in logits),
        "bundle": {"shared": sizes(bundle, folder), "per_task": sizes(per_task, folder)},
    }


def checks(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that have a limit; those of a runtime that isn't here are left out."""
    seconds = figures["seconds"]
    after = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    found = {
        "onnx_times_faster": sum(seconds["onnx separate"])
        / (figures["graph_s"] + sum(seconds["onnx ours"])),
        "onnx_s_an_expert": after["onnx ours"],
        "fuse_s_an_expert": statistics.median(seconds["fuse"]),
        "size_ratio_shared": figures["bundle"]["shared"]["ratio"],
        "size_ratio_per_task": figures["bundle"]["per_task"]["ratio"],
    }
    if "openvino ours" in after:
        found["openvino_ratio_an_expert"] = after["openvino ours"] / after["openvino separate"]
    return found


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="two experts, writes nothing")
    quick = arguments.parse_args().quick
    torch.set_num_threads(2)
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(2 if quick else 10, 64 if quick else 224, Path(name))
    found = checks(figures)
    document = {
        "most": MOST,
        "least": LEAST,
        "checks": found,
        **conditions.now(),
        **figures,
    }
    text = "\n".join(lines(document)) + "\n"
    print(text)
    if quick:
        return 0
    write("export_many", document, text)
    held = all(found[name] <= most for name, most in MOST.items() if name in found)
    return 0 if held and all(found[name] >= least for name, least in LEAST.items()) else 1


def lines(document: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    machine = document["environment"]
    seconds, off, count = document["seconds"], document["max_abs_from_unfused"], document["experts"]
    found, packages = document["checks"], machine["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "onnxruntime", "openvino", "tensorrt-rtx")
        if name in packages
    )
    text = [
        f"# {count} experts from one graph, and the bundle they come from",
        "",
        f"ShuffleNetV2 1.0x, r = 4, {count} tasks, {document['size_px']} px. "
        f"Measured {document['measured']} on {machine['cpu']}, "
        f"{machine['allowed_cpus']} CPUs, Python {machine['python']}, {versions}; "
        f"{loads(document)} (where it is above the number of CPUs, times hold waiting).",
        "",
        f"The graph is exported once, in {document['graph_s']:.2f} s; ours fuses, fills it and "
        "checks it, expert by expert. Separate is an export from torch for each expert.",
        "",
        "| to | ours, an expert: median (min–max) | separate | ours over separate "
        "| all experts, ours | separate | times faster |",
        "|---|---:|---:|---:|---:|---:|---:|",
        _row("ONNX", document, ["onnx ours"], ["onnx separate"]),
    ]
    if "openvino ours" in seconds:
        text.append(_row("OpenVINO IR", document, ["openvino ours"], ["openvino separate"]))
    if "build ours" in seconds:
        ways = ["onnx ours", "build ours"], ["onnx separate", "build separate"]
        text.append(_row("TRT-RTX (not run here)", document, *ways))
    text += [
        "",
        f"Limits: ONNX at least {LEAST['onnx_times_faster']:g} times faster in all "
        f"({found['onnx_times_faster']:.1f}) and at most {MOST['onnx_s_an_expert']} s an expert "
        f"after the first ({found['onnx_s_an_expert']:.3f} s)"
        + (
            f"; OpenVINO at most {MOST['openvino_ratio_an_expert']} of the separate way, "
            f"`convert_model` of the torch model + `save_model`, an expert after the first "
            f"({found['openvino_ratio_an_expert']:.3f})"
            if "openvino_ratio_an_expert" in found
            else ""
        )
        + f"; fusing alone at most {MOST['fuse_s_an_expert']} s ({_spread(seconds['fuse'])}).",
    ]
    if "openvino converted" in seconds:
        text += [
            "",
            "No limit is of this: where a fused ONNX file is there already, `convert_model` + "
            f"`save_model` of that file take {_spread(seconds['openvino converted'])}, our "
            f"exporter {_spread(seconds['openvino ours, from the same file'])}.",
        ]
    worst = ", ".join(f"{name} {value:.1e}" for name, value in off.items())
    text += [
        "",
        "Largest difference from the unfused torch logits (up to "
        f"{document['max_abs_logit']:.1f}): {worst}.",
        "",
        "| bundle, bytes | norms shared | norms per task |",
        "|---|---:|---:|",
    ]
    both = [document["bundle"][norm] for norm in ("shared", "per_task")]
    most = max(b["shared"]["saved_of_all_models"] for b in both)
    for kind in both[0]["bytes"]:
        text.append(f"| {kind} | " + " | ".join(f"{b['bytes'][kind]:,}" for b in both) + " |")
    text += [
        "| all | " + " | ".join(f"{b['total_bytes']:,}" for b in both) + " |",
        "| one dense expert | "
        + " | ".join(f"{b['dense_expert_bytes']:,.0f}" for b in both)
        + " |",
        "| ratio | " + " | ".join(f"{b['ratio']:.3f}" for b in both) + " |",
        f"| limit | {MOST['size_ratio_shared']} | {MOST['size_ratio_per_task']} |",
        "",
        "What a weights file for the tensors that no expert changes would save:",
        "",
        "| | norms shared | norms per task |",
        "|---|---:|---:|",
        "| initialisers the same in all models | "
        + " | ".join(f"{b['shared']['same_in_all']} of {b['shared']['initialisers']}" for b in both)
        + " |",
        "| their bytes, of a model's | "
        + " | ".join(
            f"{b['shared']['same_bytes']:,} of {b['shared']['model_bytes']:,}" for b in both
        )
        + " |",
        f"| saved of {count} models | "
        + " | ".join(f"{100 * b['shared']['saved_of_all_models']:.1f} %" for b in both)
        + " |",
        "",
        f"An engine that needs a file of all can't be delivered alone: it would be built from "
        f"{100 * WORTH:.0f} % on. {100 * most:.1f} % is the most here, so it is "
        + ("to be built." if most >= WORTH else "not built."),
    ]
    return text


def _row(name: str, document: dict[str, Any], ours: list[str], theirs: list[str]) -> str:
    """A target's row: the steps of either way added up, expert by expert."""
    seconds = document["seconds"]
    mine, other = (
        [sum(parts) for parts in zip(*(seconds[step] for step in way), strict=True)]
        for way in (ours, theirs)
    )
    ratio = statistics.median(mine[1:]) / statistics.median(other[1:])
    total = document["graph_s"] + sum(mine)
    return (
        f"| {name} | {_spread(mine)} | {_spread(other)} | {ratio:.3f} | {total:.2f} s "
        f"| {sum(other):.2f} s | {sum(other) / total:.1f} |"
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f}–{max(seconds):.3f})"


if __name__ == "__main__":
    sys.exit(main())
