"""The commands, in the order in which a run needs them: a module each, loaded when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from lorkd_deploy._version import __version__
from lorkd_deploy.cli.shared.render import Output

COMMANDS = (
    "demo",
    "init",
    "teacher",
    "decompose",
    "extract",
    "compress",
    "fuse",
    "export",
    "verify",
    "benchmark",
    "report",
    "compare",
    "pack",
    "bom",
    "sign",
    "predict",
    "listen",
    "drift",
    "inspect",
    "study",
    "transfer",
    "doctor",
)
GROUPS = ("audit", "recipe", "data")


def command_line(called: str | None = None) -> typer.Typer:
    """`lorkd` with the command or group `called` alone; with all of them where it is none's name.

    All take a tenth of a second, which somebody who waits for one answer needn't spend.
    """
    app = typer.Typer(
        name="lorkd",
        rich_markup_mode=None,  # drawing typer's boxes takes as long as all the rest of a help
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(lorkd)
    wanted = {called} if called in (*COMMANDS, *GROUPS) else {*COMMANDS, *GROUPS}
    for name in COMMANDS:
        if name in wanted:
            app.command()(getattr(_module(name), name))
    for name in GROUPS:
        if name in wanted:
            app.add_typer(_module(name).app, name=name)
    return app


def _module(name: str) -> Any:
    return import_module(f"lorkd_deploy.cli.{name}")


def _version(asked: bool) -> None:
    if asked:
        Output(as_json=False, quiet=False).text(f"lorkd {__version__}")
        raise typer.Exit


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
