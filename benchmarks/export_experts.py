"""Ten experts to ONNX: one graph filled ten times, or ten exports by torch; and the bundle's size.

    python benchmarks/export_experts.py

The papers' ten MedMNIST tasks on ShuffleNetV2 1.0x, r = 4, with random factors and norm
statistics (neither time nor size depends on training). Both ways run in one process, after a
small export that loads the exporter; each of ours ends in the ONNX checker and a file, each of
torch's in a file. Writes benchmarks/results/export_experts.json and .md.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from lorkd_deploy import add_experts, load_bundle, models
from lorkd_deploy.bundle.manifest import LayerEntry, ParityEntry, TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.write import write_bundle
from lorkd_deploy.deploy.graph import onnx_model
from lorkd_deploy.deploy.inputs import parity_inputs
from lorkd_deploy.deploy.parity import reference_tensors
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.profiling.environment import environment
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.storage import sha256_bytes, write_tensors
from lorkd_deploy.training.template import Template, graph_template

CLASSES = (9, 4, 11, 11, 11, 8, 2, 8, 7, 2)  # of the recipe's tasks, in its order
LIMITS = {
    "export_s_an_expert": 0.2,
    "fuse_s_an_expert": 0.05,
    "size_ratio_shared": 1.5,
    "size_ratio_per_task": 1.75,
}
RESULTS = Path(__file__).parent / "results"
RECIPE = load_recipe("medmnist")
SIZE = RECIPE.preprocess.size


def student(norm: Any) -> ExpertClassifier:
    """The recipe's student with random factors; norms see noise once, then drift from that.

    Without statistics that fit the weights the logits would be nearly 0, and so their error.
    """
    torch.manual_seed(0)
    backbone = models.build(RECIPE.student.architecture)
    count, spec = len(CLASSES), RECIPE.experts
    experts = add_experts(backbone, count, spec.rank, spec.alpha, norm=norm)
    model = ExpertClassifier(experts, 1024, CLASSES)
    state = model.state_dict()
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if name.endswith(".B"):
                factor.normal_(0, 0.02)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        images = RECIPE.preprocess.normalise(parity_inputs(4 * count, SIZE, 1))
        model.train()(torch.from_numpy(images), torch.arange(len(images)) % count)
        for name in [n for n in state if n.endswith("running_var")]:
            state[name] *= torch.empty_like(state[name]).uniform_(0.7, 1.4)
    return model.eval()


def as_bundle(path: Path, model: ExpertClassifier, template: Template, logits: Any) -> Bundle:
    """Everything that a bundle of the recipe holds, reference logits of 64 + 256 images too."""
    experts = model.backbone
    names = [task.name for task in RECIPE.tasks]
    departments = {t.name: d.name for d in RECIPE.departments for t in d.tasks}
    rng = np.random.default_rng(0)
    pictures = parity_inputs(RECIPE.parity.inputs, SIZE, 0)

    def arrays(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {k: v.detach().contiguous().numpy() for k, v in state.items()}

    def images(classes: int) -> Any:
        count = RECIPE.parity.test_images
        digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
        return np.arange(count), digests, rng.normal(size=(count, classes)).astype(np.float32), None

    write_bundle(
        path,
        kind="experts",
        name=RECIPE.name,
        architecture=RECIPE.student.architecture,
        parameters={"backbone": 1_253_604},
        preprocess=RECIPE.preprocess,
        tasks=[
            TaskEntry(
                name=name,
                department=departments[name],
                classes=tuple(f"a class of ordinary name {k}" for k in range(classes)),
                kind="multiclass",
                data={"source": "medmnist", "name": name, "size": SIZE, "md5": "0" * 32},
                rank=RECIPE.experts.rank,
                alpha=RECIPE.experts.alpha,
                metrics={"expert": {"accuracy": 0.912345678, "auc": 0.987654321}},
            )
            for name, classes in zip(names, CLASSES, strict=True)
        ],
        layers=[LayerEntry(name=e.name, kind=e.kind, shape=e.shape) for e in experts.layers],
        folds=template.folds,
        graph=template.graph,
        template=template.onnx,
        base=arrays(experts.base_state()),
        experts={
            name: arrays(experts.expert_state(task))
            | arrays({f"head.{k}": v for k, v in model.heads.head(task).state_dict().items()})
            for task, name in enumerate(names)
        },
        parity=ParityEntry(inputs=len(pictures), seed=0, sha256=sha256_bytes(pictures.tobytes())),
        logits={
            name: reference_tensors(logits[task], {name: images(CLASSES[task])})
            for task, name in enumerate(names)
        },
        recipe=RECIPE.model_dump(mode="json"),
        recipe_sha256=RECIPE.sha256,
        versions={"lorkd-deploy": "0", "torch": torch.__version__},
        created="2025-01-01T00:00:00+00:00",
    )
    return load_bundle(path)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of one call, and what it gave."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def by_torch(model: ExpertClassifier, task: int, file: Path) -> None:
    """What one would do without the template: a dense copy, exported as any model."""
    backbone, head = model.dense(task)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        nn.Sequential(backbone, head).eval(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        file,
        dynamo=True,
        dynamic_shapes=batch,
        external_data=False,
        input_names=["input"],
        output_names=["output"],
        opset_version=RECIPE.export.opset,
        verbose=False,
    )


def run_onnx(file: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(file).run(None, {"input": x})[0]


def export_both_ways(model: ExpertClassifier, folder: Path) -> tuple[dict[str, Any], Bundle]:
    """Seconds of both ways, and how far their models are from the unfused torch model."""
    x = RECIPE.preprocess.normalise(parity_inputs(RECIPE.parity.inputs, SIZE, 0))
    tasks = range(len(CLASSES))
    with torch.no_grad():
        logits = [model(torch.from_numpy(x), t).logits[t].numpy() for t in tasks]
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph_template(small, nn.Linear(4, 2), 16)
    graph_s, template = timed(lambda: graph_template(*model.dense(0), SIZE))
    write_s, bundle = timed(lambda: as_bundle(folder / "shared", model, template, logits))
    expert_s, torch_s, fuse_s = [], [], []
    ours_off, torch_off = 0.0, 0.0
    for task, entry in enumerate(bundle.manifest.tasks):
        ours, theirs = folder / f"ours{task}.onnx", folder / f"torch{task}.onnx"

        def filled(engine: str = entry.name, file: Path = ours) -> None:
            file.write_bytes(onnx_model(bundle, engine))

        def exported(task: int = task, file: Path = theirs) -> None:
            by_torch(model, task, file)

        expert_s.append(timed(filled)[0])
        torch_s.append(timed(exported)[0])
        ours_off = max(ours_off, float(np.abs(run_onnx(ours, x) - logits[task]).max()))
        torch_off = max(torch_off, float(np.abs(run_onnx(theirs, x) - logits[task]).max()))
    for _ in range(5):
        for entry in bundle.manifest.tasks:
            fuse_s.append(timed(lambda name=entry.name: bundle.fuse(name))[0])
    figures = {
        "graph_s": graph_s,
        "write_and_load_bundle_s": write_s,
        "expert_s": expert_s,
        "torch_s": torch_s,
        "fuse_s": fuse_s,
        "ours_total_s": graph_s + sum(expert_s),
        "torch_total_s": sum(torch_s),
        "max_abs_logit": max(float(np.abs(part).max()) for part in logits),
        "ours_max_abs_from_unfused": ours_off,
        "torch_max_abs_from_unfused": torch_off,
    }
    return figures, bundle


def sizes(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Bytes of a bundle by kind of file, and of one dense fp32 expert (mean over the tasks)."""
    files = bundle.manifest.files
    kinds: dict[str, int] = {"manifest.json": (bundle.path / "manifest.json").stat().st_size}
    for name, entry in files.items():
        kind = name.split("/")[0]
        kinds[kind] = kinds.get(kind, 0) + entry.bytes
    dense = []
    for task in bundle.manifest.tasks:
        file = folder / "dense.safetensors"
        state = bundle.dense(task.name)
        write_tensors(file, {k: v.astype(np.float32) for k, v in state.items()})
        dense.append(file.stat().st_size)
    total = sum(kinds.values())
    return {
        "bytes": kinds,
        "total_bytes": total,
        "dense_expert_bytes": statistics.mean(dense),
        "ratio": total / statistics.mean(dense),
    }


def main() -> int:
    torch.set_num_threads(2)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures, bundle = export_both_ways(student("shared"), folder)
        shared = sizes(bundle, folder)
        model = student("per_task")
        template = graph_template(*copy.deepcopy(model).dense(0), SIZE)
        logits = [np.zeros((RECIPE.parity.inputs, k), np.float32) for k in CLASSES]
        per_task = sizes(as_bundle(folder / "per_task", model, template, logits), folder)
    checks = {
        "export_s_an_expert": statistics.median(figures["expert_s"]),
        "fuse_s_an_expert": statistics.median(figures["fuse_s"]),
        "size_ratio_shared": shared["ratio"],
        "size_ratio_per_task": per_task["ratio"],
    }
    machine = environment()
    document = {
        "tasks": len(CLASSES),
        "size_px": SIZE,
        "limits": LIMITS,
        "checks": checks,
        "environment": machine.model_dump(mode="json"),
        "load_average": {"before": before, "after": os.getloadavg()},
        "export": figures,
        "bundle": {"shared": shared, "per_task": per_task},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "export_experts.json").write_text(
        json.dumps(document, indent=1) + "\n", encoding="utf-8"
    )
    text = "\n".join(_lines(document)) + "\n"
    (RESULTS / "export_experts.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(checks[name] <= limit for name, limit in LIMITS.items()) else 1


def _lines(document: dict[str, Any]) -> list[str]:
    machine, export = document["environment"], document["export"]
    loads = document["load_average"]
    lines = [
        "# Ten experts to ONNX, and the bundle they come from",
        "",
        f"ShuffleNetV2 1.0x, r = 4, ten tasks, {SIZE} px. {machine['cpu']}, "
        f"{machine['allowed_cpus']} CPUs, Python {machine['python']}, torch "
        f"{machine['packages'].get('torch')}; load average {loads['before'][0]:.1f} at the start, "
        f"{loads['after'][0]:.1f} at the end: above the number of CPUs, times hold waiting.",
        "",
        "| to ONNX | one graph, ten experts | ten exports by torch |",
        "|---|---:|---:|",
        f"| graph, once | {export['graph_s']:.2f} s | |",
        f"| an expert, median (min–max) | {_spread(export['expert_s'])} | "
        f"{_spread(export['torch_s'])} |",
        f"| ten experts | {export['ours_total_s']:.2f} s | {export['torch_total_s']:.2f} s |",
        f"| max difference from the unfused logits (up to {export['max_abs_logit']:.1f}) "
        f"| {export['ours_max_abs_from_unfused']:.1e} "
        f"| {export['torch_max_abs_from_unfused']:.1e} |",
        "",
        f"One graph is {export['torch_total_s'] / export['ours_total_s']:.1f} times as fast for "
        f"ten experts (limit an expert: {LIMITS['export_s_an_expert']} s). Fusing alone: "
        f"{_spread(export['fuse_s'])} (limit {LIMITS['fuse_s_an_expert']} s).",
        "",
        "| bundle, bytes | norms shared | norms per task |",
        "|---|---:|---:|",
    ]
    both = [document["bundle"][norm] for norm in ("shared", "per_task")]
    for kind in both[0]["bytes"]:
        lines.append(f"| {kind} | " + " | ".join(f"{b['bytes'][kind]:,}" for b in both) + " |")
    lines += [
        "| all | " + " | ".join(f"{b['total_bytes']:,}" for b in both) + " |",
        "| one dense expert | "
        + " | ".join(f"{b['dense_expert_bytes']:,.0f}" for b in both)
        + " |",
        "| ratio | " + " | ".join(f"{b['ratio']:.3f}" for b in both) + " |",
        f"| limit | {LIMITS['size_ratio_shared']} | {LIMITS['size_ratio_per_task']} |",
    ]
    return lines


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f}–{max(seconds):.3f})"


if __name__ == "__main__":
    sys.exit(main())
