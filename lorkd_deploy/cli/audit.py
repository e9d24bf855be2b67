"""`lorkd audit`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet
from lorkd_deploy.cli.shared.render import Output

app = typer.Typer(help="Check the log of what was answered.", no_args_is_help=True)

Log = Annotated[
    Path,
    typer.Argument(
        metavar="LOG", help="An audit log, as predict --audit writes it.", show_default=False
    ),
]


@app.command()
def verify(log: Log, as_json: Json = False, quiet: Quiet = False) -> None:
    """Find a line that was changed, taken out or put elsewhere; the exit code is then 3.

    Keep the hash that it prints where nobody can change it: whoever can write the whole log can
    write another whole one.

    \b
    Example:
      lorkd audit verify answers.jsonl
    """
    from lorkd_deploy import verify_log

    output = Output(as_json=as_json, quiet=quiet)
    found = verify_log(log)
    output.text(f"{found.lines} answers in {len(found.files)} files, the chain is whole")
    output.text(f"last hash: {found.last}")
    if found.torn:
        output.warning(f"{log} ends in a line that was never finished: a process was killed there")
    output.result(found)
