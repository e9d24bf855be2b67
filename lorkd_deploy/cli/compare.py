"""`lorkd compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet
from lorkd_deploy.cli.shared.render import Output

COLUMNS = ("engine", "figure", "first", "second", "change", "95 % interval", "verdict")


def compare(
    run1: Annotated[
        Path,
        typer.Argument(
            metavar="RUN1", help="A measured run, or a profile.json.", show_default=False
        ),
    ],
    run2: Annotated[
        Path,
        typer.Argument(metavar="RUN2", help="What to compare it with.", show_default=False),
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="Also show the figures that didn't change beyond noise.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what changed from one run's benchmark to another's, beyond noise.

    Engines are matched by name. Times (p50, p90, p99), throughput, memory and sizes are given as
    second over first, accuracy and the like as second minus first on the same test images. Measure
    both with `lorkd benchmark RUN --rounds 10`: with fewer rounds the intervals are wide, and with
    fewer than five no change is claimed.

    \b
    Examples:
      lorkd compare runs/small runs/smaller
      lorkd compare baseline/profile.json runs/small --all
    """
    from lorkd_deploy import compare as find_changes

    output = Output(as_json=as_json, quiet=quiet)
    found = find_changes(run1, run2)
    shown = found.changes if everything else found.beyond_noise
    if shown:
        output.table(
            "Changes" if everything else "Changed beyond noise",
            COLUMNS,
            [
                (
                    entry.engine,
                    entry.metric,
                    entry.first,
                    entry.second,
                    entry.change.value,
                    f"{entry.change.low:.3g} to {entry.change.high:.3g}",
                    entry.verdict,
                )
                for entry in shown
            ],
        )
    else:
        output.text(f"nothing changed beyond noise in {len(found.changes)} figures")
    for note in found.notes:
        output.text(f"note: {note}")
    output.result(found)
