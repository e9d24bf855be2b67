"""What `lorkd decompose` takes before and after the training: a recipe that has next to none.

    python benchmarks/fixed_costs.py [--rounds 5]

The demo's recipe with ShuffleNetV2 0.5x for a student, four tasks, 32 images a task and one epoch,
decomposed in a fresh process each round, on all cores. Its parts are timed by their functions; what
no part has is Python's start, later imports and the records. Writes
benchmarks/results/fixed_costs.json and .md, and ends with 1 where the whole is above its bound.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from document import Conditions, loads, write

LIMIT = 20.0  # s
CHANGED = [
    "student.architecture=torchvision:shufflenet_v2_x0_5",
    "images_per_task=32",
    "train.epochs=1",
    "train.validate_every=1",
]
# Function → what it is in the table. None of them calls another.
PARTS = {
    "decompose.open_setup": "images opened",
    "decompose.try_student": "the student's graph: the trial, and the one that the bundle gets",
    "teacher.build_teacher": "the teacher's network built",
    "teacher.try_teacher": "the teacher's graph",
    "teacher._fitted": "the teacher's epoch",
    "teacher.write_teacher": "the teacher's bundle: parity, scores",
    "decompose.restored_teacher": "the teacher read back",
    "decompose.build_student": "the student built",
    "decompose.fit_student": "the student's epoch, the teacher's features among it",
    "decompose.write_experts": "the bundle of experts: parity, scores",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # one round, in its process
    given = parser.parse_args()
    if given.inside:
        return inside(given.inside)
    conditions, found = Conditions(), []
    for _ in range(given.rounds + 1):  # the first fills the disk's cache
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, __file__, "--inside", work]
            began = time.perf_counter()
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append({"whole": time.perf_counter() - began} | json.loads(said))
    return report(found[1:], conditions)


def inside(folder: Path) -> int:
    """One decomposition, its parts' seconds on standard output."""
    began = time.perf_counter()
    decompose = importlib.import_module("lorkd_deploy.training.decompose")
    parts = {"imports": time.perf_counter() - began}
    for name in PARTS:
        module, _, function = name.partition(".")
        there = importlib.import_module(f"lorkd_deploy.training.{module}")
        setattr(there, function, timed(name, getattr(there, function), parts))
    decompose.decompose("demo", folder / "run", set=CHANGED)
    print(json.dumps(parts))
    return 0


def timed(name: str, function: Callable[..., Any], parts: dict[str, float]) -> Callable[..., Any]:
    """`function`, whose seconds are added to `parts`."""

    def called(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - began

    return called


def report(found: list[dict[str, float]], conditions: Conditions) -> int:
    """Write the medians of `found`; 1 where the whole is above its bound."""
    median = {name: statistics.median(one[name] for one in found) for name in found[0]}
    document = {
        "rounds": len(found),
        "limit_s": LIMIT,
        **conditions.now(),
        "seconds": found,
        "median_s": median,
    }
    write("fixed_costs", document, text(median, document))
    print(text(median, document))
    return int(median["whole"] >= LIMIT)


def text(median: Mapping[str, float], document: Mapping[str, Any]) -> str:
    """The table."""
    machine, rest = document["environment"], 2 * median["whole"] - sum(median.values())
    rows = {"imports of torch and this package": median["imports"]}
    rows |= {what: median[name] for name, what in PARTS.items()}
    rows |= {"all else": rest, "**the whole process**": median["whole"]}
    lines = [
        "# What a decomposition takes beside its training",
        "",
        "ResNet-18 at 48 px teaches ShuffleNetV2 0.5x at 32 px, four tasks of 32 images, one "
        f"epoch: medians of {document['rounds']} fresh processes, after one that isn't counted; "
        f"the bound is {LIMIT:g} s. Measured {document['measured']} on {machine['cpu']}, "
        f"{machine['allowed_cpus']} CPUs, Python {machine['python']}, {loads(document)}.",
        "",
        "| part | s |",
        "|---|---:|",
        *(f"| {what} | {seconds:.1f} |" for what, seconds in rows.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
