"""`lorkd verify`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared import parity as proof
from lorkd_deploy.cli.shared.options import Json, Quiet, Run
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.errors import GateError


def verify(
    run: Run,
    drill_down: Annotated[
        bool,
        typer.Option(
            "--drill-down",
            help="Find the first node of each engine that differs from the fused model.",
        ),
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="PUBLIC.pem",
            help="First check the signature by this key; without a signature that holds, exit "
            "with 3.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check hashes and parity of every exported engine; exit with 3 if one fails.

    \b
    Examples:
      lorkd verify runs/small
      lorkd verify runs/small --drill-down
      lorkd verify runs/small --json
      lorkd verify eye-clinic --public-key PUBLIC.pem
    """
    from lorkd_deploy import check_signature
    from lorkd_deploy import verify as check

    output = Output(as_json=as_json, quiet=quiet)
    if public_key is not None:
        check_signature(run, public_key)
        output.text(f"bundle and engines are as they were signed by the key of {public_key}")
    checked = check(run, drill_down=drill_down, progress=output.progress())
    output.table(
        "Verified",
        ("engine", "passed", *proof.COLUMNS),
        [(engine.engine, engine.passed, *proof.cells(engine.parity)) for engine in checked],
    )
    proof.show_chain(output, [(engine.engine, engine.parity) for engine in checked])
    for engine in checked:
        if engine.onnx_not_here is not None:
            output.text(f"{engine.engine}: ONNX model not compared: {engine.onnx_not_here}")
        for reason in engine.reasons:
            output.warning(f"{engine.engine}: {reason}")
        if engine.drilled is not None:
            say = output.text if engine.passed else output.warning
            say(f"{engine.engine}: {engine.drilled}")
    for said in sorted({engine.resampling for engine in checked if engine.resampling}):
        output.warning(said)
    output.result(checked)
    if not all(engine.passed for engine in checked):
        raise typer.Exit(GateError.exit_code)
