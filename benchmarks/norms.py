"""Norm layers shared or one a task: which measures better on real images.

    LORKD_DATA=FOLDER python benchmarks/norms.py --teacher RUN/teacher --out FOLDER

Decomposes the teacher twice by `recipes/medmnist-small.yaml`, alike but for `experts.norm`, into
FOLDER/shared and FOLDER/per_task. Writes benchmarks/results/norms.json and norms.md: the best
validation score (mean AUC), by which to choose, and the test AUC and accuracy of each task.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from lorkd_deploy import decompose, load_bundle, load_recipe
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.run import claim

RESULTS = Path(__file__).parent / "results"
RECIPE = "medmnist-small"
NORMS = ("shared", "per_task")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    rows = {norm: run(norm, options.teacher, options.out / norm) for norm in NORMS}
    figures = {
        "recipe": RECIPE,
        "norms": rows,
        "measured": time.strftime("%Y-%m-%d"),
        "environment": environment().model_dump(mode="json"),
    }
    (RESULTS / "norms.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / "norms.md").write_text(markdown(figures))
    print(markdown(figures))
    return 0


def run(norm: str, teacher: Path, out: Path) -> dict[str, Any]:
    """Decompose with one kind of norm; a run that is there already is read."""
    override = [f"experts.norm={norm}"]
    claimed = claim(out, load_recipe(RECIPE, override))
    if not claimed.teacher.exists():
        shutil.copytree(teacher, claimed.teacher)
    if not claimed.bundle.exists():
        decompose(RECIPE, out, set=override, resume=True)
    history = json.loads((out / "history" / "bundle.json").read_text())
    manifest = load_bundle(out).manifest
    return {
        "validation_score": history["validations"][-1]["score"],
        "steps": history["steps"],
        "seconds": history["seconds"],
        "bundle_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "test": {task.name: task.metrics["expert"] for task in manifest.tasks},
    }


def markdown(figures: dict[str, Any]) -> str:
    """One line a kind of norm."""
    rows, machine = figures["norms"], figures["environment"]
    versions = machine["packages"]
    tasks = list(next(iter(rows.values()))["test"])
    lines = [
        "| norm | validation score | bundle | "
        + " | ".join(f"{task}: test AUC, accuracy" for task in tasks)
        + " |",
        "|---|---|---|" + "---|" * len(tasks),
    ]
    for norm, row in rows.items():
        cells = [f"{row['test'][t]['auc']:.3f}, {row['test'][t]['accuracy']:.3f}" for t in tasks]
        size = f"{row['bundle_bytes'] / 2**20:.1f} MiB"
        lines.append(f"| {norm} | {row['validation_score']:.4f} | {size} | {' | '.join(cells)} |")
    lines += [
        "",
        "Validation score: mean AUC over the tasks; one seed each.",
        "",
        f"Measured {figures['measured']} on {machine['cpu']}, {machine['allowed_cpus']} CPUs; "
        f"Python {machine['python']}, torch {versions['torch']}, "
        f"torchvision {versions['torchvision']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
