"""Parses `lorkd` lines with the real command line, without running them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import typer

from lorkd_deploy.cli.app import command_line

app = command_line()


def parse(line: str) -> str:
    """The command that `line` names, once its arguments are accepted; raises click's errors."""
    words = shlex.split(line)
    assert words[0] == "lorkd", line
    command: Any = typer.main.get_command(app)
    context = command.make_context("lorkd", words[1:])
    while hasattr(command, "commands"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)
    path: str = context.command_path
    return path


def commands() -> Iterator[tuple[str, str]]:
    """Every command's path (`lorkd recipe list`) and its help text."""
    open_groups: list[tuple[str, Any]] = [("lorkd", typer.main.get_command(app))]
    while open_groups:
        path, command = open_groups.pop()
        yield path, command.help or ""
        for name, child in getattr(command, "commands", {}).items():
            open_groups.append((f"{path} {name}", child))


def examples(help_text: str) -> list[str]:
    """The `lorkd …` lines of a help text."""
    lines = (line.strip() for line in help_text.splitlines())
    return [line for line in lines if line.startswith("lorkd ")]
