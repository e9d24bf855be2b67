"""Arguments and options that several commands share, each named and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorkd_deploy.errors import UsageError

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also say what is of interest where something is odd."),
]

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe's name (see `lorkd recipe list`), or a YAML file.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key of the recipe, e.g. train.epochs=3; may be repeated.",
        show_default=False,
    ),
]
NewRun = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="The folder to write to.", show_default=False)
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the last checkpoint of the same recipe.")
]
AutoBatch = Annotated[
    bool,
    typer.Option(
        "--auto-batch",
        help="Find by halving how many images fit into memory at a time, and process each batch in "
        "parts of that size.",
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Import a frozen teacher (teacher.fit: heads or none) whose checkpoint lacks weights: "
        "those stay random.",
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write the figures of every step to RUN/tensorboard (extra `tensorboard`).",
    ),
]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run's folder, or its bundle.", show_default=False),
]
Departments = Annotated[
    list[str],
    typer.Option(
        "--department",
        metavar="D",
        help="Only this department's tasks; may be repeated.",
        show_default="all",
    ),
]
Tasks = Annotated[
    list[str],
    typer.Option(
        "--task", metavar="T", help="Only this task; may be repeated.", show_default="all"
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P",
        help="The engine's precision, as it was exported, e.g. fp16 or int8.",
    ),
]


DicomKeys = Annotated[
    list[str],
    typer.Option(
        "--dicom",
        metavar="KEY=VALUE",
        help="How DICOM files become pixels, in place of a task's data.dicom; may be repeated.",
        show_default=False,
    ),
]


def key_value(text: str, option: str = "--option") -> tuple[str, Any]:
    """`KEY=VALUE` with a YAML value; raises `UsageError` for anything else."""
    import yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise UsageError(f"{option} {text!r}: the value is not valid YAML") from exc
