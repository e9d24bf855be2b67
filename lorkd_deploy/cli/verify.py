"""`lorkd verify`"""

from __future__ import annotations

import typer

from lorkd_deploy.cli import proof
from lorkd_deploy.cli.options import Json, Quiet, Run
from lorkd_deploy.cli.render import Output
from lorkd_deploy.errors import GateError


def verify(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check hashes and parity of everything that was exported; exit 3 where one fails.

    \b
    Examples:
      lorkd verify runs/small
      lorkd verify runs/small --json
    """
    from lorkd_deploy import verify as check

    output = Output(as_json=as_json, quiet=quiet)
    checked = check(run, progress=output.progress())
    output.table(
        "Verified",
        ("engine", "passed", *proof.COLUMNS),
        [(engine.engine, engine.passed, *proof.cells(engine.parity)) for engine in checked],
    )
    proof.show_chain(output, [(engine.engine, engine.parity) for engine in checked])
    for engine in checked:
        for reason in engine.reasons:
            output.warning(f"{engine.engine}: {reason}")
    output.result(checked)
    if not all(engine.passed for engine in checked):
        raise typer.Exit(GateError.exit_code)
