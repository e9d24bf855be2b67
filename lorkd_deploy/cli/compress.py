"""`lorkd compress`"""

from __future__ import annotations

from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, NewRun, Quiet, Run
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.cli.shared.training import show_ranks


def compress(
    run: Run,
    out: NewRun,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Largest size of an expert: of its file, as in 0.3MB, or '40000 parameters'.",
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Take the smallest expert that keeps this share of ΔW's squares."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Take the smallest expert that loses at most this many points of validation "
            "accuracy.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a run's experts smaller: lower ranks, layer by layer, where it costs least.

    The singular values of each layer's ΔW say what a rank is worth. Give one of the three rules; it
    is applied to each task separately, and accuracy is that of the validation split. RUN itself is
    not changed.

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
