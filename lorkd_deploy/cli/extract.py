"""`lorkd extract`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, NewRun, Overrides, Quiet, RecipeName
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.errors import UsageError

COLUMNS = (
    "department",
    "task",
    "rank",
    "parameters",
    "change",
    "error",
    "energy",
    "kept kB",
    "validation accuracy fine-tuned",
    "expert",
    "test accuracy fine-tuned",
    "expert",
)


def extract(
    recipe: RecipeName,
    out: NewRun,
    base: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The checkpoint that all models were fine-tuned from: it becomes W0.",
            show_default=False,
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            metavar="TASK=FILE",
            help="A task's fine-tuned model; one for each task of the recipe.",
            show_default=False,
        ),
    ],
    overrides: Overrides = [],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Extract experts from models that are already fine-tuned, without training.

    All models have the recipe's student architecture and a linear head as their last layer. Each
    expert is the best approximation of W_model - W_base at the recipe's rank, layer by layer; a
    task's norms, and whatever else differs from the base and can't be low-rank, stay as they are in
    its model.

    \b
    Examples:
      lorkd extract wards.yaml --base base.pt --model lung=lung.pt --model eye=eye.pt --out runs/w
      lorkd extract eye.yaml --base base.pt --model eye=eye.pt --out runs/eye --set experts.rank=16
    """
    from lorkd_deploy import extract as take_out

    output = Output(as_json=as_json, quiet=quiet)
    found = take_out(recipe, base, _files(model), out, set=overrides, progress=output.progress())
    output.table(
        "Relative error of W_model - W_base by layer",
        ("layer", *(task.task for task in found.tasks)),
        [
            (layers[0].layer, *(layer.error for layer in layers))
            for layers in zip(*(task.layers for task in found.tasks), strict=True)
        ],
    )
    output.table(
        "Experts of fine-tuned models",
        COLUMNS,
        [
            (
                task.department,
                task.task,
                _span([layer.rank for layer in task.layers]),
                task.parameters,
                task.change,
                task.error,
                task.energy,
                sum(kept.bytes for kept in task.kept) / 1000,
                task.validation_fine_tuned.get("accuracy"),
                task.validation.get("accuracy"),
                task.test_fine_tuned.get("accuracy"),
                task.test.get("accuracy"),
            )
            for task in found.tasks
        ],
    )
    output.text(f"wrote {found.bundle}")
    output.text(f"next: lorkd export {out}")
    output.result(found)


def _files(given: Sequence[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for text in given:
        task, separator, file = text.partition("=")
        if not separator or not task or not file:
            raise UsageError(f"--model {text!r} is not of the form TASK=FILE")
        if task in files:
            raise UsageError(f"--model names {task} twice: {files[task]} and {file}")
        files[task] = file
    return files


def _span(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(high) if low == high else f"{low} to {high}"
