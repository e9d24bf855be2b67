"""`lorkd fuse`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet, Run
from lorkd_deploy.cli.shared.render import Output


def fuse(
    run: Run,
    task: Annotated[str, typer.Option(metavar="T", help="The expert's task.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(metavar="F.safetensors", help="The file to write.", show_default=False),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one expert's dense weights W0 + ΔW, norms folded, to a safetensors file.

    \b
    Examples:
      lorkd fuse runs/small --task breast --out breast.safetensors
    """
    from lorkd_deploy import fuse as write_fused

    output = Output(as_json=as_json, quiet=quiet)
    file = write_fused(run, task, out)
    output.text(f"wrote {file}")
    output.result({"task": task, "file": file, "bytes": file.stat().st_size})
