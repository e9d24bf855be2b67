"""`lorkd drift`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.audit import Log
from lorkd_deploy.cli.shared.options import Json, Quiet, Run
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.errors import GateError


def drift(
    log: Log,
    run: Run,
    limit: Annotated[
        float,
        typer.Option(
            metavar="PSI", help="The largest population stability index that passes.", min=0
        ),
    ] = 0.25,
    html: Annotated[
        Path | None,
        typer.Option(metavar="F.html", help="Also write a page with plots.", show_default=False),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare what was answered with the validation images that were held out.

    Over the limit the exit code is 3: other images come in than the model was made for, or other
    patients.

    \b
    Examples:
      lorkd drift answers.jsonl runs/small
      lorkd drift answers.jsonl runs/small --limit 0.1 --html drift.html
    """
    from lorkd_deploy import drift as compare
    from lorkd_deploy.reporting.drift_page import write_page

    output = Output(as_json=as_json, quiet=quiet)
    found = compare(log, run, limit=limit)
    output.table(
        "Answers beside the held-out validation images",
        ("task", "what", "answers", "held out", "PSI", "KS", "p", ""),
        [
            (m.task, m.what, m.answers, m.held_out, m.psi, m.ks, m.p, "over" if m.over else "")
            for m in found.measures
        ],
    )
    for task, share in found.outside.items():
        output.text(f"{task}: {share:.1%} of the pictures were answered outside")
    for task, count in found.too_few.items():
        output.warning(f"{task} has {count} answers: too few to compare")
    if html is not None:
        write_page(found, html)
        output.text(f"wrote {html}")
    output.result(found)
    if found.over:
        worst = max(found.measures, key=lambda measure: measure.psi)
        raise GateError(
            f"{worst.what} of {worst.task} has drifted: PSI {worst.psi:.2f}, limit {limit:g}",
            where=log,
            fix="look at what comes in since when: another device, window or patients",
        )
