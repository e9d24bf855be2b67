"""`lorkd inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorkd_deploy.cli.shared import parity as proof
from lorkd_deploy.cli.shared.options import Json, Quiet
from lorkd_deploy.cli.shared.render import MIB, Output

if TYPE_CHECKING:
    from lorkd_deploy.inspection import BundleContents


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A run, a bundle, or an engine's folder.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a bundle or an engine holds: tasks, ranks, sizes, hashes, where it came from.

    \b
    Examples:
      lorkd inspect runs/small
      lorkd inspect runs/small/export/eye-clinic/retina/onnx-fp32
    """
    output = Output(as_json=as_json, quiet=quiet)
    from lorkd_deploy import inspect as look

    found = look(path)
    for contents in (found.teacher, found.bundle):
        if contents is not None:
            _show(output, contents)
    if found.engines:
        output.table(
            "Engines",
            ("engine", "MiB", "from bundle", *proof.COLUMNS),
            [
                (e.name, e.bytes / MIB, e.record.bundle_sha256[:12], *proof.cells(e.record.parity))
                for e in found.engines
            ],
        )
        proof.show_chain(output, [(e.name, e.record.parity) for e in found.engines])
        proof.show_choices(output, [e.record for e in found.engines])
    output.result(found)


def _show(output: Output, contents: BundleContents) -> None:
    title = "Teacher" if contents.kind == "teacher" else "Bundle"
    scored = "teacher" if contents.kind == "teacher" else "expert"
    output.table(
        f"{title} {contents.name}: {contents.architecture}",
        ("department", "task", "classes", "rank", "alpha", "accuracy", "AUC", "data"),
        [
            (
                task.department,
                task.name,
                len(task.classes),
                task.rank if not task.ranks else task.shown_rank,
                task.alpha,
                task.metrics.get(scored, {}).get("accuracy"),
                task.metrics.get(scored, {}).get("auc"),
                task.data.get("source"),
            )
            for task in contents.tasks
        ],
    )
    sizes = ", ".join(f"{part} {size / MIB:.2f}" for part, size in contents.bytes.items())
    parameters = ", ".join(f"{part} {count:,}" for part, count in contents.parameters.items())
    versions = ", ".join(f"{name} {version}" for name, version in contents.versions.items())
    output.text(f"MiB: {sizes}")
    output.text(f"parameters: {parameters}; experts on {contents.expert_layers} layers")
    if contents.kind == "experts":
        output.text(f"factorisation: {contents.factorisation}")
    for task in contents.tasks:
        if task.ranks:
            other = ", ".join(f"{layer} {rank}" for layer, rank in task.ranks.items())
            output.text(f"{task.name} has rank {task.rank} but on {other}")
    output.text(f"made {contents.created} with {versions}")
    output.text(f"bundle sha256 {contents.sha256}")
    for relation, hashes in (("grown", contents.grown_from), ("packed", contents.packed_from)):
        if hashes:
            output.text(f"{relation} from {hashes[-1]}, whose files and engines are valid here")
    if contents.extracted_from:
        output.text(f"extracted from models fine-tuned from {contents.extracted_from}")
    output.text(f"recipe sha256 {contents.recipe_sha256}")
    output.text(
        f"input {contents.preprocess.size} px, preprocessing sha256 {contents.preprocess_sha256}\n"
    )
