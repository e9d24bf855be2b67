"""`lorkd demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Quiet, Verbose
from lorkd_deploy.cli.shared.render import Output


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder.")] = Path(
        "lorkd-demo"
    ),
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Do every step once on generated images: train, decompose, export, verify, measure, report.

    It needs no data and takes about two minutes on two cores.

    \b
    Examples:
      lorkd demo
      lorkd demo --out /tmp/lorkd-demo
    """
    from lorkd_deploy import demo as run_demo

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    result = run_demo(out, progress=output.progress())
    output.table(
        "Drawn images: they show the way and claim no accuracy",
        ("department", "task", "teacher's accuracy", "expert's", "faster", "smaller"),
        [
            (
                one.department,
                one.task,
                one.teacher_accuracy,
                one.expert_accuracy,
                f"{one.faster:.1f} ×",
                f"{one.smaller:.1f} ×",
            )
            for one in result.tasks
        ],
    )
    output.text(
        f"{result.engines} engines exported, {result.verified} verified in {result.seconds:.0f} s"
    )
    output.text(f"open {result.report}")
    output.result(result)
