"""The main job on real images, from the teacher to the report, and its figures as a table.

    LORKD_DATA=FOLDER python benchmarks/medmnist_small.py --out RUN [--note TEXT]
        [--before FILE] [--again]

Stages that RUN holds already are not repeated. `--before` is the medmnist-small.json of another
training, with which scores and times are compared in the Markdown file. Writes
benchmarks/results/medmnist-small.json and medmnist-small.md, and its table into docs/results.md;
with `--again`, a training at seed 1, medmnist-small-again.json and .md alone. They have accuracy
and AUC of teacher and experts on the whole test splits through their engines (95 % bootstrap
intervals), parameters, latency and memory ratios, parity.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lorkd_deploy import benchmark, decompose, export, load_bundle, report, teacher, verify
from lorkd_deploy.deploy.verify import Verification
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import EngineProfile, Profile, Score

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- results: begin; ", "<!-- results: end -->"
# Test AUC that an expert has to reach: what a plain multi-task network was seen to reach, less a
# margin for the seed.
FLOORS = {"breast": 0.80, "pneumonia": 0.93, "retina": 0.66, "blood": 0.985}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the run's folder")
    parser.add_argument("--note", default="", help="what else the trainings' times have to say")
    parser.add_argument("--before", type=Path, help="another training's medmnist-small.json")
    parser.add_argument("--again", action="store_true", help="seed 1; keep the first run's results")
    given = parser.parse_args()
    run, changes = given.out, ["seed=1"] if given.again else []
    if not (run / "teacher").exists():
        teacher("medmnist-small", run, set=changes, resume=True)
    if not (run / "bundle").exists():
        decompose("medmnist-small", run, set=changes, resume=True)
    export(run, "onnx", teacher=True)
    verified = verify(run)
    profile = benchmark(run)
    report(run)
    note = f", {given.note}" if given.note else ""
    figures = collect(run, verified, profile) | {"note": note}
    before = json.loads(given.before.read_text()) if given.before else None
    again = since(before, figures) if before else ""
    name = "medmnist-small-again" if given.again else "medmnist-small"
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(figures) + again)
    if not given.again:
        PAGE.write_text(with_results(PAGE.read_text(), markdown(figures)))
    failed = [r["task"] for r in figures["tasks"] if not r["passed"]]
    print(markdown(figures), f"below a floor: {', '.join(failed)}" if failed else "all floors met")
    return 1 if failed or not all(check.passed for check in verified) else 0


def collect(run: Path, verified: list[Verification], profile: Profile) -> dict[str, Any]:
    """Everything the table says, as JSON."""
    bundle, foundation = load_bundle(run), load_bundle(run / "teacher")
    # RUN may hold engines of other targets too, which are measured in the same rounds.
    shown = [e for e in profile.engines if (e.target, e.precision) == ("onnx", "fp32")]
    names = {engine.engine for engine in shown}
    mentor = next(e for e in shown if e.kind == "teacher")
    rows = []
    for engine in (e for e in shown if e.kind == "expert"):
        (task,) = engine.tasks
        known, own = _score(mentor, task), _score(engine, task)
        against = next(c for c in profile.comparisons if c.engine == engine.engine)
        floor = FLOORS[task]
        rows.append(
            {
                "task": task,
                "department": engine.department,
                "images": own.images,
                "majority": own.majority,
                "floor": floor,
                "passed": _value(own.auc) >= floor
                and min(own.accuracy.value, known.accuracy.value) > own.majority,
                "teacher": known.model_dump(mode="json"),
                "expert": own.model_dump(mode="json"),
                "difference": [d.model_dump(mode="json") for d in against.scores],
                "p50_ms": engine.latency.p50.model_dump(),
                "speed_up": [r.model_dump(mode="json") for r in against.latency],
                "memory_ratio": against.memory,
                "size_ratio": against.size,
                "bytes": engine.bytes,
            }
        )
    return {
        "created": profile.created,
        "recipe": bundle.manifest.recipe,
        "training": {
            name: json.loads((run / "history" / f"{name}.json").read_text())
            for name in ("teacher", "bundle")
        },
        "parameters": {
            "teacher": foundation.manifest.parameters,
            "student": bundle.manifest.parameters,
        },
        "bundle_bytes": sum(entry.bytes for entry in bundle.manifest.files.values()),
        "teacher_p50_ms": mentor.latency.p50.model_dump(),
        "teacher_bytes": mentor.bytes,
        "tasks": rows,
        "parity": [check.model_dump(mode="json") for check in verified if check.engine in names],
        "protocol": profile.protocol.model_dump(mode="json", exclude={"order"}),
        "environment": profile.environment.model_dump(mode="json"),
        "versions": bundle.manifest.versions,
        "notes": list(profile.notes),
    }


def markdown(figures: dict[str, Any]) -> str:
    """The table that docs/results.md shows, and below it what it takes to judge it."""
    lines = [
        "| task | test images | majority | teacher AUC | expert AUC | teacher accuracy "
        "| expert accuracy | faster | smaller | less memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["tasks"]:
        known, own = row["teacher"], row["expert"]
        lines.append(
            f"| {row['task']} | {row['images']} | {row['majority']:.3f} | {_shown(known['auc'])} "
            f"| {_shown(own['auc'])} | {_shown(known['accuracy'])} | {_shown(own['accuracy'])} "
            f"| {row['speed_up'][0]['ratio']['value']:.1f} × | {row['size_ratio']:.1f} × "
            f"| {row['memory_ratio']:.1f} × |"
        )
    environment, protocol = figures["environment"], figures["protocol"]
    load = environment["load"]
    times = {name: part["seconds"] / 60 for name, part in figures["training"].items()}
    worst = max(c["max_abs"] for p in figures["parity"] for c in p["parity"]["compared"])
    lines += [
        "",
        "AUC and accuracy on the whole test split through the ONNX engines, fp32, with 95 % "
        "bootstrap intervals; *faster* is the teacher's median latency over the expert's at batch "
        f"1 (p50 {figures['teacher_p50_ms']['value']:.1f} ms on this machine), paired by round.",
        "",
        f"Measured {figures['created'][:10]} on {environment['cpu']}, "
        f"{environment['allowed_cpus']} CPUs, {protocol['threads']} thread(s), "
        f"{protocol['rounds']} rounds, load average {load['before'][0]:.1f} before and "
        f"{load['after'][0]:.1f} after; Python {environment['python']}, "
        f"torch {figures['versions']['torch']}, "
        f"onnxruntime {environment['packages'].get('onnxruntime', '?')}. Teacher training "
        f"{times['teacher']:.0f} min, decomposition {times['bundle']:.0f} min, on "
        f"{figures['training']['teacher']['threads']} CPU thread(s) in "
        f"{figures['training']['teacher']['precision']}{figures['note']}. "
        f"Largest parity difference of these engines {worst:.2g}. "
        f"Bundle of {len(figures['tasks'])} experts {figures['bundle_bytes'] / 2**20:.1f} MiB, "
        f"teacher {figures['teacher_bytes'] / 2**20:.1f} MiB.",
        "",
    ]
    return "\n".join([*lines, f"Experts below the teacher: {_below(figures['tasks'])}.", ""])


def since(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What another version of code and recipe scored and took, beside these figures."""
    lines = [
        "",
        f"Beside what was measured on {before['created'][:16]}, experts, test split:",
        "",
        "| task | AUC then | AUC now | accuracy then | accuracy now | intervals |",
        "|---|---|---|---|---|---|",
    ]
    then = {row["task"]: row["expert"] for row in before["tasks"]}
    for row in after["tasks"]:
        old, new = then[row["task"]], row["expert"]
        pairs = [(old[metric], new[metric]) for metric in ("auc", "accuracy")]
        apart = [one["low"] > other["high"] for one, other in pairs]
        cells = " | ".join(_shown(interval) for pair in pairs for interval in pair)
        lines.append(f"| {row['task']} | {cells} | {'lower' if any(apart) else 'no loss shown'} |")
    lines += ["", "| training | then, min | now, min | steps | how, then | how, now |"]
    lines.append("|---|---|---|---|---|---|")
    for name, what in (("teacher", "teacher"), ("bundle", "decomposition")):
        runs = [document["training"][name] for document in (before, after)]
        took = " | ".join(f"{run['seconds'] / 60:.0f}" for run in runs)
        steps = " → ".join(str(run["steps"]) for run in runs)
        how = " | ".join(f"{run['threads']} thread(s), {run['precision']}" for run in runs)
        lines.append(f"| {what} | {took} | {steps} | {how} |")
    notes = [f"then{before.get('note', '')}", f"now{after.get('note', '')}"]
    return "\n".join([*lines, "", "Trained " + "; ".join(notes) + ".", ""])


def _below(rows: list[dict[str, Any]]) -> str:
    """Every task and metric in which the expert scores less, and whether noise could be why."""
    found = []
    for row in rows:
        for metric in ("auc", "accuracy"):
            gap = row["difference"][0][metric]
            if gap["value"] < 0:
                sure = "beyond" if gap["high"] < 0 else "within"
                found.append(f"{row['task']} {metric} by {-gap['value']:.3f} ({sure} the interval)")
    return ", ".join(found) if found else "none"


def with_results(readme: str, table: str) -> str:
    """The page with `table` between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    mark, _, rest = rest.partition("\n")
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{mark}\n{table}{END}{after}"


def _score(engine: EngineProfile, task: str) -> Score:
    return next(score for score in engine.scores if score.task == task)


def _value(interval: Interval | None) -> float:
    return float("nan") if interval is None else interval.value


def _shown(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['value']:.3f} ({interval['low']:.3f}–{interval['high']:.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
