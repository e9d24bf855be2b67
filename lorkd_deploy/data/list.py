"""List files without a header, one for each split: `path label`, or `path,label` or `path,0,1,0`.

RadImageNet's lists have a space between, Med-MT's a comma.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from lorkd_deploy.data.columns import Meaning
from lorkd_deploy.data.index import Index, Row, index_rows
from lorkd_deploy.data.listed import Listed, open_listed
from lorkd_deploy.data.source import DataSource, TaskData, locate
from lorkd_deploy.data.table import encoding_of, reading
from lorkd_deploy.errors import DataError


class ListData(Listed, DataSource):
    """Files of a line for each image, path then label, one for each split."""

    source: Literal["list"]
    train: str
    val: str | None = Field(default=None, description="unset: `val_share` of the training images")
    test: str
    findings: tuple[str, ...] = Field(
        default=(), description="names of several labels of 0 and 1 a line; unset: one class"
    )

    def load(self, folders: Sequence[Path]) -> TaskData:
        """Comma or white space is found from the first line; a path may hold spaces.

        Raises `DataError` for files that are missing and for lines that are wrong.
        """
        files = {"train": self.train, "val": self.val, "test": self.test}
        lists = {split: locate(file, folders) for split, file in files.items() if file}
        root = self.folder(list(lists.values()), folders)
        return open_listed(self, lists, root, lambda: self._index(lists, root))

    def _index(self, lists: Mapping[str, Path], root: Path) -> Index:
        where = ", ".join(str(path) for path in lists.values())
        count = len(self.findings) or 1
        meaning = Meaning(self.findings, self.classes, own=self.label_range)
        rows = (row for split, path in lists.items() for row in _rows(path, split, count))
        return index_rows(rows, root, meaning, where)


def _rows(path: Path, split: str, count: int) -> Iterator[Row]:
    delimiter: str | None = ""
    with reading(path, encoding_of(path)) as stream:
        for line, text in enumerate(stream, 1):
            entry = text.strip()
            if not entry or entry.startswith("#"):
                continue
            if delimiter == "":
                delimiter = "," if "," in entry else None  # None: white space
            name, *labels = entry.rsplit(delimiter, count)
            if len(labels) != count:
                raise DataError(
                    f"the line has no {'label' if count == 1 else f'{count} labels'} "
                    f"behind its path: {entry[:80]!r}",
                    where=f"{path}, line {line}",
                    fix="write: path label",
                )
            yield Row(line, name, split, labels)
