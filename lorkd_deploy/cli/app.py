"""The commands, in the order in which a run needs them."""

from __future__ import annotations

from typing import Annotated

import typer

from lorkd_deploy._version import __version__
from lorkd_deploy.cli import audit, data, recipe
from lorkd_deploy.cli.benchmark import benchmark
from lorkd_deploy.cli.bom import bom
from lorkd_deploy.cli.compare import compare
from lorkd_deploy.cli.compress import compress
from lorkd_deploy.cli.decompose import decompose
from lorkd_deploy.cli.demo import demo
from lorkd_deploy.cli.doctor import doctor
from lorkd_deploy.cli.drift import drift
from lorkd_deploy.cli.export import export
from lorkd_deploy.cli.extract import extract
from lorkd_deploy.cli.fuse import fuse
from lorkd_deploy.cli.init import init
from lorkd_deploy.cli.inspect import inspect
from lorkd_deploy.cli.listen import listen
from lorkd_deploy.cli.pack import pack
from lorkd_deploy.cli.predict import predict
from lorkd_deploy.cli.report import report
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.cli.sign import sign
from lorkd_deploy.cli.study import study
from lorkd_deploy.cli.teacher import teacher
from lorkd_deploy.cli.transfer import transfer
from lorkd_deploy.cli.verify import verify

app = typer.Typer(
    name="lorkd",
    rich_markup_mode=None,  # drawing typer's boxes takes as long as all the rest of a help
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for command in (
    demo,
    init,
    teacher,
    decompose,
    extract,
    compress,
    fuse,
    export,
    verify,
    benchmark,
    report,
    compare,
    pack,
    bom,
    sign,
    predict,
    listen,
    drift,
    inspect,
    study,
    transfer,
    doctor,
):
    app.command()(command)
app.add_typer(audit.app, name="audit")
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        Output(as_json=False, quiet=False).text(f"lorkd {__version__}")
        raise typer.Exit


@app.callback()
def lorkd(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Decompose a medical foundation model into light experts, one verified engine per department.

    The steps of a run: teacher, decompose, export, verify, benchmark, report. Not a medical device.

    \b
    Examples:
      lorkd demo
      lorkd decompose medmnist-small --out runs/small
      lorkd export runs/small
    """
