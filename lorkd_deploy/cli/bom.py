"""`lorkd bom`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Departments, Json, Quiet, Run
from lorkd_deploy.cli.shared.render import Output


def bom(
    run: Run,
    department: Departments = [],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write there instead of below RUN/bom.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what each department is made of as a CycloneDX ML-BOM, with a model card a task.

    Weights, engines, data sets and packages, with hashes and versions.

    \b
    Examples:
      lorkd bom runs/small
      lorkd bom runs/small --department eye-clinic --out delivery
    """
    from lorkd_deploy import bom as write

    output = Output(as_json=as_json, quiet=quiet)
    files = write(run, department=department, out=out)
    for file in files:
        output.text(f"wrote {file}")
    output.result(files)
