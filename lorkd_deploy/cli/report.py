"""`lorkd report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet, Run
from lorkd_deploy.cli.shared.render import Output


def report(
    run: Run,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Embed up to eight test images per task, with both models' answers. They may be "
            "patients' images: share such a page only where the images may be shared.",
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="RUN2",
            help="Another measured run, or its profile.json: also show what changed from it to "
            "RUN, beyond noise.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html (one file that needs no network) and report.md from the measurements.

    Every table and plot is also written as a CSV file, in report-csv.

    \b
    Examples:
      lorkd report runs/small
      lorkd report runs/small --images
      lorkd report runs/small --against runs/before
    """
    from lorkd_deploy import report as write_report

    output = Output(as_json=as_json, quiet=quiet)
    files = write_report(run, images=images, against=against)
    for file in (files.html, files.markdown, *files.model_cards):
        output.text(f"wrote {file}")
    output.text(f"wrote {len(files.tables)} tables to {files.tables[0].parent}")
    output.result(files)
