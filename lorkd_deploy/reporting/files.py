"""The files of a page: HTML, Markdown, a CSV file for each table, and what belongs to them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.reporting.html import document
from lorkd_deploy.reporting.table import Table
from lorkd_deploy.storage import inside, write_atomic


class Content(Protocol):
    """A page: its tables, those of its plots too."""

    @property
    def tables(self) -> Sequence[Table]: ...


class Written(NamedTuple):
    """Where a page lies; a CSV file for each of its tables, in the page's order."""

    html: Path
    markdown: Path
    tables: tuple[Path, ...]


def write_page(
    folder: Path, name: str, page: Content, markdown: str, beside: Mapping[Path, str] | None = None
) -> Written:
    """Write `page` by the template of its `name` to NAME.html, NAME.md and NAME-csv in `folder`.

    Everything, the texts `beside` it too, is put together before anything is written, and tables
    of an earlier page are taken away. Raises `LorkdError` where it can't be written, and what
    `document` raises.
    """
    csv = inside(folder, f"{name}-csv")
    tables = {inside(csv, f"{table.key}.csv"): table.csv() for table in page.tables}
    files = Written(folder / f"{name}.html", folder / f"{name}.md", tuple(tables))
    shown = document(f"{name}.html", page)
    try:
        _write({files.html: shown, files.markdown: markdown, **(beside or {}), **tables})
        for file in csv.glob("*.csv"):
            if file not in tables:
                file.unlink()  # of an earlier page, of what is measured no more
    except OSError as exc:
        raise LorkdError(
            f"the report can't be written: {exc.strerror}",
            where=exc.filename,
            fix="check who owns the run's folder, what is in the way there and what room its disk "
            "has, or copy the run to where you may write",
        ) from exc
    return files


def _write(texts: Mapping[Path, str]) -> None:
    """Write every file; none where one of their folders can't be written to."""
    for folder in sorted({file.parent for file in texts}):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    for file, text in texts.items():
        write_atomic(file, text.encode())
