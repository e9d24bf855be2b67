"""`lorkd decompose`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import (
    AllowMissing,
    AutoBatch,
    Json,
    NewRun,
    Overrides,
    Quiet,
    RecipeName,
    Resume,
    TensorBoard,
    Verbose,
)
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.cli.shared.training import show


def decompose(
    recipe: RecipeName,
    out: NewRun,
    overrides: Overrides = [],
    resume: Resume = False,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="The finished run, or its bundle, that --add-department adds to.",
            show_default=False,
        ),
    ] = None,
    add_department: Annotated[
        list[str],
        typer.Option(
            metavar="D",
            help="Train only this department; W0 and all others stay as they are in --from. "
            "May be repeated.",
            show_default=False,
        ),
    ] = [],
    auto_batch: AutoBatch = False,
    allow_missing: AllowMissing = False,
    tensorboard: TensorBoard = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train W0 and the experts with RUN's teacher, and write the bundle.

    Uses the GPU if there is one. Ctrl-C leaves the last checkpoint whole; --resume continues from
    it.

    \b
    Examples:
      lorkd decompose medmnist-small --out runs/small
      lorkd decompose medmnist-small --out runs/small --resume
      lorkd decompose medmnist --out runs/papers --auto-batch --tensorboard
      lorkd decompose medmnist-small --out runs/rank8 --set experts.rank=8 --set train.epochs=3
      lorkd decompose grown.yaml --from runs/small --add-department dermatology --out runs/grown
    """
    from lorkd_deploy import decompose as train_experts

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    result = train_experts(
        recipe,
        out,
        set=overrides,
        resume=resume,
        from_run=from_run,
        add_department=add_department,
        auto_batch=auto_batch,
        allow_missing=allow_missing,
        tensorboard=tensorboard,
        progress=output.progress(),
    )
    show(output, result)
    output.text(f"next: lorkd export {out}")
