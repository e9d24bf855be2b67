"""How long the default takes on real images: `lorkd decompose seven-tasks`, its teacher included.

    LORKD_DATA=FOLDERS python benchmarks/seven_tasks.py --out RUN

On all cores that this process may use, from nothing to the bundle: RUN must not be there yet.
FOLDERS have the weights of the teacher too. Parts are timed as `fixed_costs.py` does. Writes
benchmarks/results/seven_tasks.json and .md, and ends with 1 where the whole is above its bound.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from document import Conditions, loads, write
from fixed_costs import PARTS, timed

RECIPE, LIMIT = "seven-tasks", 45.0  # minutes on two cores, on a machine with nothing else to do


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the run's folder, a new one")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} is there already: what it has done would not be timed")
    conditions, began = Conditions(), time.perf_counter()
    decompose = importlib.import_module("lorkd_deploy.training.decompose")
    parts = {"imports": time.perf_counter() - began}
    for name in PARTS:
        module, _, function = name.partition(".")
        there = importlib.import_module(f"lorkd_deploy.training.{module}")
        setattr(there, function, timed(name, getattr(there, function), parts))
    result = decompose.decompose(RECIPE, given.out)
    document = {
        "recipe": RECIPE,
        "limit_minutes": LIMIT,
        "seconds": {**parts, "whole": time.perf_counter() - began},
        "training": {"steps": result.steps, "seconds": result.seconds},
        "tasks": [task.model_dump(mode="json") for task in result.tasks],
        **conditions.now(),
    }
    write("seven_tasks", document, text(document))
    print(text(document))
    return int(document["seconds"]["whole"] > 60 * LIMIT)


def text(document: Mapping[str, Any]) -> str:
    """The table."""
    machine, seconds = document["environment"], document["seconds"]
    whole = seconds["whole"]
    rows = {what: seconds[name] for name, what in PARTS.items() if name in seconds}
    rows |= {"all else": 2 * whole - sum(seconds.values()), "**the whole**": whole}
    auc = [
        f"{who} {statistics.fmean(task[who]['auc'] for task in document['tasks']):.3f}"
        for who in ("teacher", "expert")
    ]
    lines = [
        f"# How long `lorkd decompose {document['recipe']}` takes",
        "",
        f"One run from nothing to the bundle, the frozen teacher's features and heads included; "
        f"the bound is {LIMIT:g} minutes on two cores. Measured {document['measured']} on "
        f"{machine['cpu']}, {machine['allowed_cpus']} CPUs, Python {machine['python']}, torch "
        f"{machine['packages']['torch']}, {loads(document)}. Test AUC over the tasks, of this one "
        f"training: {', '.join(auc)}.",
        "",
        "| part | minutes |",
        "|---|---:|",
        *(f"| {what} | {taken / 60:.1f} |" for what, taken in rows.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
