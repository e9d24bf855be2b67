"""Each lever of the default training left out alone: a study on the seven tasks.

    LORKD_DATA=FOLDERS python benchmarks/ablation.py --out STUDY --workers 2 [--only 2,5-8]
    python benchmarks/ablation.py --list

The recipe is `seven-tasks`, as the main study has it; FOLDERS have the weights of its teacher too.
STUDY may be the main study's own folder: its trainings of the experts and the teacher's features
are then used again, and `lorkd study` with its own methods makes its own result anew. What is
stopped goes on by the same call. Writes benchmarks/results/ablation.json and ablation.md, of AUC
and accuracy on the test images; differences are the default minus what is left out, by the
statistics of `lorkd study`.

The table can be made in parts, on whatever day and machine: `--only` measures those levers of
`--list`, and what was measured of the others is kept. Each part has trainings of the default of its
own, at the same seeds, since one training ends elsewhere on another machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.knowledge_separation import numbers
from benchmarks.study_table import shown, software, without_paths
from lorkd_deploy.evidence.pages.page import study_page
from lorkd_deploy.evidence.pages.report import write_report
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.evidence.study import study
from lorkd_deploy.evidence.train import read_record
from lorkd_deploy.machine.environment import environment

RESULTS = Path(__file__).parent / "results"
RECIPE = "seven-tasks"
DEFAULT = "experts"
# What is left out, or is as it was before: a method of `lorkd study` with other values.
LEFT_OUT = {
    "the experts, at the same cost": "mtl-kd",
    "AdamW: SGD, as in the paper's recipe": "experts+optimizer=sgd+lr=0.05+weight_decay=0.0001",
    "alpha / rank = 1: 4": "experts+alpha=64",
    "rank 16: 4": "experts+rank=4+alpha=4",
    "what the teacher teaches": "experts+kind=none",
    "its features: its logits alone": "experts+kind=logits",
    "its logits: its features alone": "experts+kind=features",
    "a target that can't shrink: the paper's": "experts+kind=paper",
    "long training: 6 epochs": "experts+epochs=6+validate_every=6",
    "the falling rate: a constant one": "experts+schedule=constant",
    "drawing small tasks more often": "experts+temperature=1",
    "mirrored images": "experts+flip=false",
}
# Was measured while recipes offered it, and is shown where a result has it.
GONE = {"shared norms: one per task": "experts+norm=per_task"}
METHODS = ",".join([DEFAULT, *LEFT_OUT.values()])
Part = dict[str, Any]  # what one call measured


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=numbers, help="levers by number, as 2,5-8")
    parser.add_argument("--list", action="store_true", help="the levers by number, and no more")
    options = parser.parse_args()
    levers = list(LEFT_OUT.items())
    if options.list:
        print("\n".join(f"{n}: {what}: {name}" for n, (what, name) in enumerate(levers, 1)))
        return 0
    if options.out is None:
        parser.error("--out: the study's folder")
    chosen = [levers[number - 1][1] for number in options.only or range(1, len(levers) + 1)]
    result = study(
        RECIPE,
        options.out,
        methods=",".join([DEFAULT, *chosen]),
        seeds=options.seeds,
        workers=options.workers,
    )
    write_report(options.out, study_page(result))
    scores = validation(options.out)
    new: Part = {
        "measured": time.strftime("%Y-%m-%d"),
        "result": without_paths(result).model_dump(mode="json"),
        "validation": {name: scores[name] for name in result.variants},
        "environment": environment().model_dump(mode="json"),
    }
    file = RESULTS / "ablation.json"
    kept = json.loads(file.read_text())["parts"] if file.exists() else []
    parts = merged(kept, new)
    file.write_text(json.dumps({"recipe": RECIPE, "parts": parts}, indent=1) + "\n")
    text = markdown(parts)
    (RESULTS / "ablation.md").write_text(text)
    print(text)
    return 0


def merged(kept: Sequence[Part], new: Part) -> list[Part]:
    """`kept` without what `new` has measured again, and `new`."""
    parts = []
    for part in kept:
        names = part["result"]["variants"]
        left = [n for n in names if n == DEFAULT or n not in new["result"]["variants"]]
        if left != [DEFAULT]:
            parts.append({**part, "result": {**part["result"], "variants": left}})
    return [*parts, new]


def validation(study: Path) -> dict[str, list[float]]:
    """Method → mean AUC over the tasks' validation images of each training, by which is chosen."""
    found: dict[str, list[float]] = {}
    for file in sorted(study.glob("*/seed-*/trained.json")):
        own = read_record(file.parent)
        found.setdefault(own.training.variant, []).append(own.validation)
    return found


def markdown(parts: Sequence[Part]) -> str:
    """A row for each lever, over all tasks and seeds, below the default's own of its part."""
    lines = [
        f"# Each lever alone left out, {RECIPE}",
        "",
        "Means over all tasks and seeds: AUC on validation images, by which is chosen, and AUC and "
        "accuracy on the test images, with 95 % intervals over images and seeds of the default "
        "minus what is left out. The default was trained again wherever a part of the table was "
        "measured: differences are from the nearest *nothing* above. `benchmarks/ablation.py`.",
        "",
        "| left out | validation AUC | AUC | default minus it | | accuracy | default minus it | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    failed = []
    for part in parts:
        result = StudyResult.model_validate(part["result"])
        when = f"{part['measured']}, {part['environment']['cpu']}, {len(result.seeds)} seeds"
        scores = part["validation"]
        lines.append(row(f"nothing ({when}; {software(result)})", DEFAULT, result, scores))
        known = (LEFT_OUT | GONE).items()
        lines += [row(what, n, result, scores) for what, n in known if n in result.variants]
        failed += [f"\nFailed: {folder}: {why}" for folder, why in result.failed.items()]
    return "\n".join([*lines, *failed]) + "\n"


def row(what: str, name: str, result: StudyResult, scores: dict[str, list[float]]) -> str:
    """AUC and accuracy, and the differences with interval and verdict."""
    known = scores.get(name, [])[: len(result.seeds)]
    cells = [what, f"{fmean(known):.3f}" if known else ""]
    for metric in ("auc", "accuracy"):
        cells.append(f"{result.comparison.figure(name, None, metric).estimate.value:.3f}")
        if name == DEFAULT:
            cells += ["", ""]
            continue
        found = result.comparison.difference(name, None, metric)
        cells += [shown(found.estimate, signed=True), found.verdict]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
