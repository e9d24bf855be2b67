"""A CSV file: an image a row, with its label or findings, its split, its patient and more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lorkd_deploy.data.columns import Meaning
from lorkd_deploy.data.index import Index, Row, index_rows
from lorkd_deploy.data.listed import Listed, open_listed
from lorkd_deploy.data.source import DataSource, TaskData, locate
from lorkd_deploy.data.table import Table, open_table
from lorkd_deploy.errors import DataError


class Columns(Listed):
    """Which columns of a CSV file say what; a name is found whatever its case."""

    path: str | dict[Literal["train", "val", "test"], str] = Field(
        description="a file with a column for the split, or {train: FILE, val: FILE, test: FILE}"
    )
    image: str = Field(default="path", description="column of the images' paths")
    label: str = Field(default="label", description="column of the classes' names or numbers")
    findings: tuple[str, ...] = Field(
        default=(), description="columns of 0 and 1, each a finding, instead of `label`"
    )
    split: str = Field(default="split", description="column that says train, val or test")
    group: str | None = Field(default=None, description="column of patients, studies or lesions")
    attributes: tuple[str, ...] | dict[str, tuple[float, ...]] = Field(
        default=(),
        description="columns by which figures are shown too: [sex, age], or with the bounds of a "
        "number's bands {age: [40, 65], sex: []}",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Columns:
        if self.findings and self.classes is not None:
            raise ValueError("findings name themselves: leave `classes` out")
        for name, edges in self.bands.items():
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"the bounds of {name} must rise")
        return self

    @property
    def bands(self) -> dict[str, tuple[float, ...]]:
        """Attribute → bounds of its bands, none where it finds its own."""
        given = self.attributes
        return dict(given) if isinstance(given, dict) else dict.fromkeys(given, ())

    def lists(self, folders: Sequence[Path]) -> dict[str, Path]:
        """The files: by split, or as `all` where one has a column for it."""
        if isinstance(self.path, str):
            return {"all": locate(self.path, folders)}
        return {split: locate(file, folders) for split, file in self.path.items()}

    def index(self, lists: Mapping[str, Path], root: Path) -> Index:
        """Everything that the files say; raises `DataError`, with the lines of wrong rows."""
        meaning = Meaning(self.findings, self.classes, self.bands, self.label_range)
        where = ", ".join(str(path) for path in lists.values())
        return index_rows(self._rows(lists), root, meaning, where)

    def _rows(self, lists: Mapping[str, Path]) -> Iterator[Row]:
        for split, path in lists.items():
            yield from self._rows_of(open_table(path), None if split == "all" else split)

    def _rows_of(self, table: Table, split: str | None) -> Iterator[Row]:
        image = table.column(self.image, "the images' paths")
        labels = [table.column(name, "labels") for name in self.findings or (self.label,)]
        group = self._group_column(table)
        attributes = [table.column(name, "an attribute's values") for name in self.bands]
        own = self._split_column(table) if split is None else None
        for line, cells in table.rows():
            yield Row(
                line,
                cells[image],
                cells[own] if own is not None else split or "train",
                [cells[place] for place in labels],
                None if group is None else cells[group],
                [cells[place] for place in attributes],
            )

    def _group_column(self, table: Table) -> int | None:
        return None if self.group is None else table.column(self.group, "the groups")

    def _split_column(self, table: Table) -> int | None:
        """Where the split stands; None where all are training images, to be divided."""
        try:
            return table.column(self.split, "the splits")
        except DataError as exc:
            raise DataError(
                exc.what,
                where=exc.where,
                fix="`lorkd data split FILE --out FILE` adds one; or give a file for each split: "
                "path: {train: …, val: …, test: …}",
            ) from None


class CsvData(Columns, DataSource):
    """A CSV file with a row for each image: path, label or findings, split, group, attributes."""

    source: Literal["csv"]

    def load(self, folders: Sequence[Path]) -> TaskData:
        """Delimiter (comma, semicolon, tab, bar) and encoding are found.

        Files that are missing are counted and named before anything else is done. Raises
        `DataError` for them, for a column that isn't there and for rows that are wrong.
        """
        lists = self.lists(folders)
        root = self.folder(list(lists.values()), folders)
        return open_listed(self, lists, root, lambda: self.index(lists, root))
