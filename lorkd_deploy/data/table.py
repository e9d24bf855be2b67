"""Delimited text, read row by row: encoding and delimiter are found, faults name their line."""

from __future__ import annotations

import codecs
import csv
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lorkd_deploy.errors import DataError, unknown_name

DELIMITERS = ",;\t|"
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A CSV file with a header; `rows` reads it again each time, a row at a time."""

    path: Path
    encoding: str
    delimiter: str
    columns: tuple[str, ...]

    def column(self, name: str, what: str) -> int:
        """The place of the column called `name`, whatever its case; `what` is it for."""
        lowered = [column.lower() for column in self.columns]
        if name not in self.columns and lowered.count(name.lower()) != 1:
            raise DataError(
                f"no column is called {name!r}, which {what} stand in",
                where=self.path,
                fix=f"name it in the recipe; {unknown_name('column', name, self.columns).fix}",
            )
        return self.columns.index(name) if name in self.columns else lowered.index(name.lower())

    def rows(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Line number and cells of each row that isn't empty; as many cells as columns."""
        with reading(self.path, self.encoding) as stream:
            reader = csv.reader(stream, delimiter=self.delimiter)
            next(reader)
            for row in reader:
                if len(row) == len(self.columns):
                    yield reader.line_num, row
                elif row:
                    raise DataError(
                        f"the row has {len(row)} cells, the header {len(self.columns)}",
                        where=f"{self.path}, line {reader.line_num}",
                        fix="quote cells that hold the delimiter",
                    )


def open_table(path: Path) -> Table:
    """The header of a CSV file; raises `DataError` where there is none to read."""
    encoding = encoding_of(path)
    with reading(path, encoding) as stream:
        first = stream.readline()
        delimiter = max(DELIMITERS, key=first.count)  # the comma, where there is none at all
        columns = next(csv.reader([first], delimiter=delimiter), [])
    names = tuple(name.strip() for name in columns)
    if not any(names) or len(set(names)) < len(names):
        raise DataError(
            "the file is empty" if not any(names) else "two columns have the same name",
            where=f"{path}, line 1",
            fix="the first line names the columns, for example: path,label,split,patient",
        )
    return Table(path, encoding, delimiter, names)


def encoding_of(path: Path) -> str:
    """UTF-8, UTF-16 with its mark, or else Windows-1252, as spreadsheets write it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _readable(path), path.open("rb") as stream:
        head = stream.read(1 << 20)
        marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        if marked:
            return marked
        try:
            while head:
                decoder.decode(head)
                head = stream.read(1 << 20)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            log.warning("%s is not UTF-8: read as Windows-1252", path)
            return "cp1252"
    return "utf-8"


@contextmanager
def reading(path: Path, encoding: str) -> Iterator[TextIO]:
    """The file as text; what goes wrong while it is read is a `DataError`."""
    with _readable(path), path.open(encoding=encoding, newline="") as stream:
        yield stream


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DataError(f"the file can't be read: {exc.strerror}", where=path) from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise DataError(
            f"the file is no readable text: {exc}", where=path, fix="save it as CSV in UTF-8"
        ) from exc
