"""One table, shown in four forms: HTML, Markdown, CSV and JSON all render this and nothing else.

A cell holds the value (for sorting and for the downloads) and the text that a reader sees, so a
figure is rounded once, in one place.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Value = str | float | int | None
Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """`text` is read, `value` is sorted and downloaded, `note` stands smaller beside the text;
    `shade`, 0 … 1, tints the ground."""

    text: str
    value: Value = None
    note: str = ""
    tone: Tone = ""
    shade: float = 0


@dataclass(frozen=True)
class Column:
    """`key` names the column in downloads (with its unit), `title` on the page."""

    key: str
    title: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """`key` is the file name of the downloads and the anchor on the page."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def below(self, chapter: str) -> Table:
        """The same table with the chapter's name before its key."""
        return replace(self, key=f"{chapter}-{self.key}")

    def without_gaps(self) -> Table:
        """The same without columns that hold no value, which the caption names; the first stays."""
        kept = [
            place
            for place in range(len(self.columns))
            if place == 0 or any(_says(row[place]) for row in self.rows)
        ]
        gone = [c.title for place, c in enumerate(self.columns) if place not in kept and c.numeric]
        missing = f"Not measured here: {', '.join(gone)}." if gone else ""
        return replace(
            self,
            caption=" ".join(filter(None, (self.caption, missing))),
            columns=tuple(self.columns[place] for place in kept),
            rows=tuple(tuple(row[place] for place in kept) for row in self.rows),
        )

    def records(self) -> list[dict[str, Value]]:
        """For each row, column key to value; what was not measured is None."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, (cell.value for cell in row), strict=True)) for row in self.rows]

    def json(self) -> str:
        """The records as JSON text."""
        return json.dumps(self.records(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def csv(self) -> str:
        """The records as RFC 4180 text; an empty field is what was not measured."""
        return csv_text([c.key for c in self.columns], [list(r.values()) for r in self.records()])


def _says(cell: Cell) -> bool:
    return cell.value not in (None, "") or bool(cell.note)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """RFC 4180 text. A name that a spreadsheet would run as a formula is marked as text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([_inert(value) for value in row] for row in rows)
    return stream.getvalue()


def _inert(value: Value) -> Value:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
