"""Progress and the library's log on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from lorkd_deploy.machine.launcher import launch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

PIPE_WIDTH = 160  # columns of a table that is written to a file or a pipe
LOG_SECONDS = 30  # between two lines of progress where stderr is no terminal
BRIEF = 2  # seconds: a bar that was drawn for less leaves no line behind


class Bar:
    """Draws a `lorkd_deploy.progress.Progress` on stderr."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: Any = None

    def start(self, what: str, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        def column(**options: Any) -> Column:
            return Column(no_wrap=True, **options)

        stop_drawing()
        self._began = time.monotonic()
        # In a narrow terminal the figures at the end are cut, and not the counts and times.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False, table_column=column()),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=column()),
            TimeElapsedColumn(table_column=column()),
            TextColumn("left", style="dim", table_column=column()),
            TimeRemainingColumn(table_column=column()),
            TextColumn(
                "{task.fields[shown]}",
                markup=False,
                table_column=column(ratio=1, overflow="ellipsis"),
            ),
            console=console(sys.stderr),
            expand=True,
        )
        self._task = self._bar.add_task(what, total=total, shown="")
        self._bar.start()
        _drawn.append(self)

    def advance(self, steps: int = 1, **shown: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)
            if shown:
                self._bar.update(self._task, shown=_joined(shown))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.live.transient = time.monotonic() - self._began < BRIEF
            self._bar.stop()
            _drawn.remove(self)
        self._bar = None

    def above(self, line: str) -> None:
        """Write a line above the bar while it is drawn."""
        if self._bar is not None:
            self._bar.console.print(line, soft_wrap=True)


class Lines:
    """A `lorkd_deploy.progress.Progress` for a log: a line on stderr every half minute."""

    def start(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._last = time.monotonic()

    def advance(self, steps: int = 1, **shown: str) -> None:
        self._done += steps
        if time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            line = f"{self._what} {self._done}/{self._total}  {_joined(shown)}"
            sys.stderr.write(line.rstrip() + "\n")

    def stop(self) -> None: ...


_drawn: list[Bar] = []  # the bar on the screen, if there is one


def stop_drawing() -> None:
    """End the bar that is on the screen, so that what comes next starts on a line of its own."""
    for bar in list(_drawn):
        bar.stop()


class Messages(logging.Handler):
    """The library's log on stderr, above a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        if not launch().leads:
            prefix = f"rank {launch().index}: {prefix}"
        text = prefix + record.getMessage()
        for bar in _drawn:
            bar.above(text)
        if not _drawn:
            sys.stderr.write(text + "\n")


def console(stream: TextIO) -> Console:
    """Rich on `stream`, without markup; at a fixed width where that is no terminal."""
    from rich.console import Console

    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False)


def _joined(shown: dict[str, str]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
