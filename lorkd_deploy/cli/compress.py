"""`lorkd compress`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lorkd_deploy.cli.render import Output
from lorkd_deploy.cli.shared.options import Json, NewRun, Quiet, Run

if TYPE_CHECKING:
    from lorkd_deploy.training.ranks.shrinking import CompressedTask

COLUMNS = (
    "department",
    "task",
    "rank",
    "energy",
    "parameters before",
    "after",
    "kB before",
    "after",
    "validation accuracy before",
    "after",
)


def compress(
    run: Run,
    out: NewRun,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="At most this large an expert: 0.3MB of its file, or '40000 parameters'.",
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="The smallest expert with this share of ΔW's squares."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="The smallest expert that loses at most so many points of validation accuracy.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a run's experts smaller: lower ranks, layer by layer, where it costs least.

    The singular values of each layer's ΔW say what a rank is worth. One rule, for each task by
    itself; accuracy is measured on the validation split. RUN stays as it is.

    \b
    Examples:
      lorkd compress runs/small --out runs/tiny --budget 0.3MB
      lorkd compress runs/small --out runs/tiny --energy 0.99
      lorkd compress runs/small --out runs/tiny --max-drop 0.5
    """
    from lorkd_deploy import compress as truncate

    output = Output(as_json=as_json, quiet=quiet)
    found = truncate(
        run, out, budget=budget, energy=energy, max_drop=max_drop, progress=output.progress()
    )
    show_ranks(output, f"Experts by {found.rule}", found.tasks)
    output.text(f"wrote {found.bundle}")
    output.text(f"next: lorkd export {out}")
    output.result(found)


def show_ranks(output: Output, title: str, tasks: Sequence[CompressedTask]) -> None:
    """What became of each task's expert: ranks, energy, sizes, validation accuracy."""
    output.table(
        title,
        COLUMNS,
        [
            (
                task.department,
                task.task,
                f"{min(task.ranks.values())} to {max(task.ranks.values())}",
                task.energy,
                task.parameters_before,
                task.parameters,
                task.bytes_before / 1000,
                task.bytes / 1000,
                task.validation_before["accuracy"],
                task.validation["accuracy"],
            )
            for task in tasks
        ],
    )
