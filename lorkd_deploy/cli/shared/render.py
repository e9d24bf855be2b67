"""Results on stdout and errors on stderr; `drawing.py` draws progress. Nothing else prints."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lorkd_deploy.cli.shared.drawing import Bar, Lines, Messages, console, stop_drawing
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.launcher import launch
from lorkd_deploy.progress import Progress, Silent

if TYPE_CHECKING:
    from lorkd_deploy.reporting.table import Table

MIB = 2**20  # bytes
Row = Sequence[object]


class Output:
    """What a command shows: one JSON document, or text and tables, or nothing (`quiet`)."""

    def __init__(self, *, as_json: bool, quiet: bool, verbose: bool = False) -> None:
        # Of several processes of one training, the first speaks for all.
        follows = not launch().leads
        self.as_json = as_json and not follows
        self.quiet = quiet or follows
        told = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        level = logging.ERROR if follows else told
        logging.getLogger("lorkd_deploy").setLevel(level)

    def progress(self) -> Progress:
        """A bar on stderr, which leaves stdout to the result; in a log, a line now and then."""
        if self.quiet:
            return Silent()
        return Bar() if sys.stderr.isatty() else Lines()

    def result(self, value: object) -> None:
        """The command's result: with `--json` the document on stdout, else nothing."""
        if self.as_json:
            _write_json(plain(value))

    def warning(self, line: str) -> None:
        """A line on stderr that has to be read even with `--quiet` and `--json`."""
        logging.getLogger("lorkd_deploy").warning("%s", line)

    def text(self, line: str) -> None:
        """One line for a reader."""
        if not self.as_json and not self.quiet:
            sys.stdout.write(line + "\n")

    def table(self, title: str, columns: Row, rows: Iterable[Row]) -> None:
        """Rows below their column names; figures are right-aligned, what isn't there is a dash."""
        if self.as_json or self.quiet:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        cells = [list(row) for row in rows]
        table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(columns):
            figures = not any(isinstance(row[index], str) for row in cells)
            table.add_column(str(name), justify="right" if figures else "left", overflow="fold")
        for row in cells:
            table.add_row(*(_cell(value) for value in row))
        console(sys.stdout).print(table)

    def tables(self, shown: Iterable[Table], before: str = "") -> None:
        """A page's tables; a cell's small print follows in brackets, `before` begins each title."""
        for one in shown:
            rows = [[f"{c.text} ({c.note})" if c.note else c.text for c in row] for row in one.rows]
            self.table(before + one.title, [column.title for column in one.columns], rows)


def listen() -> None:
    """Show the library's log from now on, on streams that write every text.

    What an encoding other than UTF-8 lacks (a dash, a Greek letter) comes as an escape: a check
    that has passed doesn't end in an error for how its result looks. Two of Pillow's warnings are
    not shown, since they leave a user nothing to do: of an image half as large as it refuses, and
    of EXIF data that can't be read. In a process of the library's user they are that user's.
    """
    for nothing_to_do in ("Image size .* exceeds limit", "Corrupt EXIF data"):
        warnings.filterwarnings("ignore", message=nothing_to_do)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("lorkd_deploy")
    if not any(isinstance(handler, Messages) for handler in logger.handlers):
        logger.addHandler(Messages())


def error(fault: LorkdError, *, as_json: bool) -> None:
    """An error as what, where and what to do: on stderr, and with `--json` on stdout too."""
    stop_drawing()
    process = launch()
    whose = f"rank {process.index}: " if process.count > 1 else ""
    sys.stderr.write(f"{whose}error: {fault}\n")
    if as_json and process.leads:
        document = {
            "error": {
                "kind": type(fault).__name__,
                "what": fault.what,
                "where": fault.where,
                "fix": fault.fix,
                "exit_code": fault.exit_code,
            }
        }
        _write_json(document)


def stopped(then: str) -> None:
    """That Ctrl-C has ended the command, and how to go on."""
    stop_drawing()
    if launch().leads:
        sys.stderr.write(f"stopped: {then}\n")


def plain(value: object) -> Any:
    """`value` as JSON can hold it: models and dataclasses as objects, NaN and ±inf as null."""
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, inf_nan_mode="null"))


def _write_json(document: object) -> None:
    """A document on stdout, in ASCII where its text doesn't fit the stream's encoding."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return str(value)
