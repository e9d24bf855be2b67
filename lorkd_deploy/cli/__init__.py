"""The command line: one file per command, a thin layer over the function of the same name.

`main` is the edge where every error becomes a message and an exit code: 0 done, 1 a fault that
the message explains, 2 wrong usage, 3 a failed gate, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

import typer

from lorkd_deploy.cli.app import command_line
from lorkd_deploy.cli.shared import render
from lorkd_deploy.cli.shared.faults import (
    missing_package,
    out_of_memory,
    system_fault,
    unloadable_library,
)
from lorkd_deploy.errors import LorkdError, UsageError

# click's ClickException; newer versions of typer carry a click of their own.
CommandError = cast("type[Exception]", typer.BadParameter.__mro__[2])
STOPPED = 130
RESUMABLE = {"teacher", "decompose"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a bug keeps its traceback."""
    # Looking for plug-ins of pydantic reads a file of every installed package: time for an answer.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    render.listen()
    try:
        app = command_line(arguments[0] if arguments else None)
        code = app(arguments or ["--help"], prog_name="lorkd", standalone_mode=False)
        sys.stdout.flush()
        if code == STOPPED:  # newer versions of typer take Ctrl-C themselves
            return _stopped(arguments)
        return code if isinstance(code, int) else 0
    except LorkdError as exc:
        fault = exc
    except CommandError as exc:
        fault = _usage(exc)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(arguments)
    except BrokenPipeError:  # the reader has gone: `lorkd … | head`
        _give_up_stdout()
        return 1
    except ModuleNotFoundError as exc:
        fault = missing_package(exc)
    except ImportError as exc:
        fault = unloadable_library(exc)
    except OSError as exc:
        fault = system_fault(exc)
    except (MemoryError, RuntimeError) as exc:
        fault = out_of_memory(exc)
    try:
        if not fault.reported:
            render.error(fault, as_json=as_json)
        sys.stdout.flush()
    except OSError:  # of a full disk under stdout, which has been told on stderr
        _give_up_stdout()
    return fault.exit_code


def _give_up_stdout() -> None:
    """Let go of a stdout that takes nothing: Python would fail when it flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(exc: Exception) -> UsageError:
    message = getattr(exc, "format_message", exc.__str__)()
    context = getattr(exc, "ctx", None)
    command = "lorkd" if context is None else context.command_path
    return UsageError(message, fix=f"`{command} --help` shows the usage and examples")


def _stopped(arguments: list[str]) -> int:
    if arguments[:1] == ["benchmark"]:
        then = "the finished rounds are kept; the same command with --resume continues"
    elif arguments[:1] and arguments[0] in RESUMABLE:
        then = "the last checkpoint is whole; the same command with --resume continues from it"
    else:
        then = "nothing half-written was left; the same command starts again"
    render.stopped(then)
    return STOPPED
