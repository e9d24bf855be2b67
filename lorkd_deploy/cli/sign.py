"""`lorkd sign`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Quiet, Run
from lorkd_deploy.cli.shared.render import Output


def sign(
    run: Run,
    key: Annotated[
        Path,
        typer.Option(
            metavar="KEY.pem", help="A private key of an elliptic curve.", show_default=False
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Sign a run's bundle and engines, for `lorkd verify --public-key` where they are used.

    \b
    Examples:
      lorkd sign eye-clinic --key KEY.pem
      lorkd verify eye-clinic --public-key PUBLIC.pem
    """
    from lorkd_deploy import sign as make

    output = Output(as_json=False, quiet=quiet)
    output.text(f"wrote {make(run, key)}")
    output.text(f"next, where it is used: lorkd verify {run} --public-key PUBLIC.pem")
