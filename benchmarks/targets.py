"""Every target and precision of a finished run, proven and scored: one table.

    LORKD_DATA=FOLDER python benchmarks/targets.py RUN [--engines DIR] [--results DIR]

Exports ONNX fp32, fp16 and int8, OpenVINO fp32, bf16 and int8 and TensorRT for RTX fp32 and fp16 of
every department's tasks and of the teacher, each by itself: what fails its parity, or can't be
built here, is a row with its figures or its reason. Engines that run here are scored on the whole
test split beside the ONNX fp32 engine of the same network, paired by image. RUN is not changed:
engines go to --engines, or to a temporary folder. Writes benchmarks/results/targets.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from document import RESULTS, Conditions, loads, write

from lorkd_deploy import export, load_bundle
from lorkd_deploy.bundle.manifest import TEACHER
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.proof.parity import Change, Compared, Parity, ParityError
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.scoring import TaskAnswers, answers, difference, open_task, score

MIB = 2**20  # bytes
PLANS = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("trt-rtx", "fp32"),
    ("trt-rtx", "fp16"),
)
BASELINE = ("onnx", "fp32")
Built = dict[tuple[str, str, str], Artifact]  # by engine, target and precision


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with teacher and bundle")
    parser.add_argument("--engines", type=Path, help="where the engines go and stay")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    given = parser.parse_args()
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as name:
        document = measured(given.run, given.engines or Path(name))
    document |= conditions.now()
    text = "\n".join(lines(document)) + "\n"
    write("targets", document, text, given.results)
    print(text)
    proven = [row for row in document["rows"] if row["precision"] == "fp32"]
    return 0 if all(row["status"] != "failed" for row in proven) else 1


def measured(run: Path, engines: Path) -> dict[str, Any]:
    """Build, prove and score everything; a row an engine, target and precision."""
    bundle = load_bundle(run)
    built: Built = {}
    rows = []
    for engine, department in networks(bundle):
        for target, precision in PLANS:
            row = {
                "engine": engine,
                "department": department,
                "target": target,
                "precision": precision,
            }
            row |= attempt(run, engines, row, built)
            print(f"{engine} {target} {precision}: {row['status']}", flush=True)
            rows.append(row)
    for row in rows:
        row["scores"] = {}
    for given in scored(bundle, [a for a in built.values() if a.parity.status == "passed"]):
        for row in rows:
            add_score(row, given, built)
    return {
        "run": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "bundle_created": bundle.manifest.created,
        "size_px": bundle.manifest.preprocess.size,
        "calibration": bundle.manifest.recipe.get("calibration"),
        "rows": rows,
    }


def networks(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Every expert, then the teacher, each with its department."""
    for task in bundle.manifest.tasks:
        yield task.name, task.department
    yield TEACHER, TEACHER


def attempt(run: Path, engines: Path, row: dict[str, Any], built: Built) -> dict[str, Any]:
    """One export: its status, its parity, its size; a failure is an answer too."""
    engine, target, precision = row["engine"], row["target"], row["precision"]
    source = run / "teacher" if engine == TEACHER else run
    task = [] if engine == TEACHER else [engine]
    try:
        (artifact,) = export(source, target, precision=precision, task=task, out=engines)
    except ParityError as exc:
        return {"status": "failed", "parity": exc.parity.model_dump(mode="json")}
    except LorkdError as exc:
        return {"status": "not built", "reason": exc.what, "parity": None}
    built[engine, target, precision] = artifact
    return {
        "status": artifact.parity.status,
        "reason": "; ".join(artifact.parity.reasons) or None,
        "parity": artifact.parity.model_dump(mode="json"),
        "bytes": artifact.bytes,
        "build_seconds": artifact.build_seconds,
        "facts": artifact.facts,
    }


def scored(bundle: Bundle, engines: list[Artifact]) -> Iterator[TaskAnswers]:
    """Every engine's answers on the whole test split of each task whose data is here."""
    for task in bundle.manifest.tasks:
        data = open_task(bundle, task)
        if data is not None:
            print(f"scoring {len(data.test)} test images of {task.name}", flush=True)
            yield answers(task, data, engines, threads=1, cpus=None, threshold=0.5)


def add_score(row: dict[str, Any], given: TaskAnswers, built: Built) -> None:
    """Accuracy and AUC of a row's engine on one task, and their difference from the baseline's."""
    artifact = built.get((row["engine"], row["target"], row["precision"]))
    exact = built.get((row["engine"], *BASELINE))
    if artifact is None or artifact.name not in given.probabilities:
        return
    own = score(given, artifact.name)
    found = {
        "images": own.images,
        "accuracy": own.accuracy.model_dump(),
        "auc": own.auc and own.auc.model_dump(),
    }
    if exact is not None and exact.name in given.probabilities:
        lost = difference(given, artifact.name, exact.name)
        found["accuracy_difference"] = lost.accuracy.model_dump()
        found["auc_difference"] = lost.auc and lost.auc.model_dump()
    row["scores"][given.task] = found


def lines(document: dict[str, Any]) -> list[str]:
    """The table, and below it what it takes to judge it."""
    machine = document["environment"]
    packages = machine["packages"]
    named = ("onnx", "onnxruntime", "openvino", "nncf", "tensorrt-rtx", "numpy")
    versions = ", ".join(f"{name} {packages[name]}" for name in named if name in packages)
    head = (
        "network",
        "target",
        "precision",
        "status",
        "max difference (allowed)",
        "cosine",
        "flips",
        "parity images: accuracy, points",
        "parity images: AUC, points",
        "test accuracy",
        "test AUC",
        "against ONNX fp32, points",
        "MiB",
    )
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    table += [f"| {' | '.join(cells(row))} |" for row in document["rows"]]
    refused = [row for row in document["rows"] if row.get("reason")]
    reasons = {f"{r['target']} {r['precision']}: {r['reason']}" for r in refused}
    return [
        f"# Targets and precisions of `{document['run']}`",
        "",
        *table,
        "",
        "Difference, cosine and flips are the worst over tasks and test images (generated inputs "
        "where there are no images), against the unfused torch model; changes of the parity images "
        "against it, of the whole test split against the ONNX fp32 engine, with 95 % bootstrap "
        "intervals, paired by image. Of several tasks the one that changes most is shown. What "
        "is *failed* lies outside of the tolerance: `lorkd export` writes no such engine; what is "
        "*not run here* was built, and is proven only where its GPU is.",
        "",
        *(f"- {reason}" for reason in sorted(reasons)),
        "",
        f"Run `{document['run']}`, bundle {document['bundle_sha256'][:12]} of "
        f"{document['bundle_created'][:10]}, {document['size_px']} px. Measured "
        f"{document['measured']} on {machine['cpu']}, {machine['allowed_cpus']} CPUs; Python "
        f"{machine['python']}, {versions}; {loads(document)}.",
    ]


def cells(row: dict[str, Any]) -> list[str]:
    name = TEACHER if row["engine"] == TEACHER else f"{row['department']}/{row['engine']}"
    size = f"{row['bytes'] / MIB:.2f}" if "bytes" in row else "–"
    return [
        name,
        row["target"],
        row["precision"],
        row["status"],
        *proof_cells(row["parity"]),
        *score_cells(list(row["scores"].values())),
        size,
    ]


def proof_cells(raw: dict[str, Any] | None) -> list[str]:
    """Difference with its tolerance, cosine, flips, changes of accuracy and AUC."""
    parity = None if raw is None else Parity.model_validate(raw)
    compared = () if parity is None else parity.compared
    shown = [c for c in compared if c.on == "images"] or list(compared)
    if not shown:
        return ["–"] * 5
    worst = max(shown, key=lambda part: part.excess)
    largest = "not finite" if worst.max_abs is None else f"{worst.max_abs:.2g}"
    cosines = [c.cosine for c in shown if c.cosine is not None]
    return [
        f"{largest} ({worst.tolerance:.2g})",
        f"{min(cosines):.6f}" if cosines else "–",
        f"{sum(c.flips for c in shown)} of {sum(c.rows for c in shown)}",
        *(change_cell(shown, name) for name in ("accuracy", "auc")),
    ]


def change_cell(shown: list[Compared], name: str) -> str:
    changes: list[Change] = [c for c in (getattr(entry, name) for entry in shown) if c is not None]
    if not changes:
        return "–"
    most = max(changes, key=lambda c: abs(c.difference))
    return points(most.difference, most.low, most.high)


def score_cells(scores: list[dict[str, Any]]) -> list[str]:
    """Accuracy and AUC (means over tasks), and the accuracy that is lost against the baseline."""
    if not scores:
        return ["–"] * 3
    mean = sum(s["accuracy"]["value"] for s in scores) / len(scores)
    areas = [s["auc"]["value"] for s in scores if s["auc"]]
    lost = [s["accuracy_difference"] for s in scores if "accuracy_difference" in s]
    most = max(lost, key=lambda c: abs(c["value"])) if lost else None
    return [
        f"{mean:.4f}",
        f"{sum(areas) / len(areas):.4f}" if areas else "–",
        points(most["value"], most["low"], most["high"]) if most else "–",
    ]


def points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
