"""`lorkd report`"""

from __future__ import annotations

from typing import Annotated

import typer

from lorkd_deploy.cli.render import Output
from lorkd_deploy.cli.shared.options import Json, Quiet, Run


def report(
    run: Run,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Embed up to eight test images a task, with both models' answers. They may be "
            "patients' images: pass such a page on only where the images may be passed on.",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html (one file that needs no network) and report.md from the measurements.

    Every table and plot also goes to a CSV file of its own, in report-csv.

    \b
    Examples:
      lorkd report runs/small
      lorkd report runs/small --images
    """
    from lorkd_deploy import report as write_report

    output = Output(as_json=as_json, quiet=quiet)
    files = write_report(run, images=images)
    for file in (files.html, files.markdown, *files.model_cards):
        output.text(f"wrote {file}")
    output.text(f"wrote {len(files.tables)} tables to {files.tables[0].parent}")
    output.result(files)
