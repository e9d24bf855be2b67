"""`lorkd init`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.errors import UsageError


def init(
    out: Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML file to write.")] = Path(
        "recipe.yaml"
    ),
    images: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="A folder of images, a CSV file that lists them, or a NumPy archive; may be "
            "repeated, each with a --department. Without it you are asked.",
            show_default=False,
        ),
    ] = [],
    department: Annotated[
        list[str],
        typer.Option(metavar="D", help="Whose images they are.", show_default=False),
    ] = [],
    task: Annotated[
        list[str],
        typer.Option(
            metavar="T", help="What its expert answers.", show_default="the folder's name"
        ),
    ] = [],
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The CSV's column of patients, who stay in one split.",
            show_default="patient, patient_id, …, if there is one",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="How long the training may take on this machine.")
    ] = 15.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a recipe for your own images: by asking, or from --images and --department alone.

    Looks at the images, divides them into splits where they have none, warns of leaks, and times a
    few training steps here: what it proposes fits into --minutes.

    \b
    Examples:
      lorkd init
      lorkd init --images scans --department eye-clinic
      lorkd init mine.yaml --images scans.csv --department radiology --group patient
    """
    from lorkd_deploy import init as propose

    output = Output(as_json=as_json, quiet=quiet)
    if not images:
        images, department, task, minutes = _asked(minutes)
    made = propose(
        images,
        department,
        out,
        task=task,
        group=group,
        minutes=minutes,
        progress=output.progress(),
    )
    output.table(
        "Images",
        ("task", *(f"{split} images" for split in ("train", "val", "test"))),
        [(check.task, *(split.images for split in check.splits)) for check in made.checks],
    )
    for check in made.checks:
        for finding in check.findings:
            output.warning(f"{check.task}: {finding.level}: {finding.says}")
    for lists in made.lists:
        output.text(f"wrote {lists}: which image is in which split")
    output.text(
        f"{made.teacher} teaches {made.student} at {made.size} px, {made.epochs} epochs: about "
        f"{made.minutes:.0f} min of training on this machine"
    )
    if made.minutes > minutes:
        output.warning(f"nothing shorter is proposed, though that is more than {minutes:g} min")
    output.text(f"wrote {out}; next: lorkd decompose {out} --out runs/{made.name}")
    output.result(made)


def _asked(minutes: float) -> tuple[list[Path], list[str], list[str], float]:
    """Images, departments, tasks and minutes, from whoever sits there."""
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody can be asked here: the input is no terminal",
            fix="give --images DIR and --department NAME",
        )
    images, departments, tasks = [], [], []
    while True:
        path = Path(typer.prompt("Folder of images, or a CSV file that lists them")).expanduser()
        if not path.exists():
            typer.echo(f"there is nothing at {path}")
            continue
        images.append(path)
        departments.append(typer.prompt("Department that they belong to"))
        tasks.append(typer.prompt("What is answered of them", default=path.resolve().stem))
        if not typer.confirm("Another set of images?", default=False):
            break
    minutes = typer.prompt("Minutes that the training may take", default=minutes, type=float)
    return images, departments, tasks, minutes
