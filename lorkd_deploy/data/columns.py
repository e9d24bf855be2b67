"""What the columns of a list mean: texts become labels, groups and attributes, as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I32, I64, U8
from lorkd_deploy.data.source import Attribute
from lorkd_deploy.errors import DataError

UNKNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown", "?"}
FEW = 8  # numbers of an attribute that are values of their own; more are put into bands
SHOWN = 5  # wrong rows or texts that a message names


@dataclass
class Coded:
    """A column of text as numbers: `codes[text]` is what stands for it."""

    codes: dict[str, int] = field(default_factory=dict)
    numbers: array[int] = field(default_factory=lambda: array("i"))

    def add(self, text: str) -> None:
        self.numbers.append(self.codes.setdefault(text.strip(), len(self.codes)))

    def array(self) -> I32:
        return np.array(self.numbers, np.int32)


@dataclass(frozen=True)
class Meaning:
    """What the columns mean: names of `findings` or else of `classes`, and of `attributes`.

    Without `classes` they are those that the training images show. Of a list that numbers the
    classes of several tasks only the rows from the first to the last number of `own` are meant, and
    `classes` begin at the first. `edges` are the bounds of the bands of an attribute that is a
    number; without them the training images' quartiles are.
    """

    findings: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    attributes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    own: tuple[int, int] | None = None

    @property
    def first(self) -> int:
        """The number of the first class, where `classes` names them."""
        return self.own[0] if self.own else 0


def labels_of(
    columns: Sequence[Coded], split: U8, meaning: Meaning, where: object
) -> tuple[tuple[str, ...], I64]:
    """The classes, and int64 `(N,)` places in them, or 0 and 1 `(N, L)` for findings.

    `split` `(N,)` says which images train. Raises `DataError` for a text that is no label.
    """
    if meaning.findings:
        states = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
        found = [_mapped(c, states, where, f"of {name!r}, 0 or 1") for name, c in
                 zip(meaning.findings, columns, strict=True)]  # fmt: skip
        return meaning.findings, np.stack(found, axis=1)
    (column,) = columns
    shown = set(np.unique(column.array()[split == 0]).tolist())
    texts = [text for text, code in column.codes.items() if code in shown]
    numbers = {text: number for text in column.codes if (number := whole(text)) is not None}
    numbered = len(numbers) == len(column.codes)
    if meaning.classes is None:
        if numbered:
            order = sorted({numbers[text] for text in texts})
            place = {number: at for at, number in enumerate(order)}
            places = {text: place[n] for text, n in numbers.items() if n in place}
            classes = tuple(f"class-{number}" for number in order)
        else:
            classes = tuple(sorted(texts))
            places = {text: place for place, text in enumerate(classes)}
    else:
        classes = meaning.classes
        places = {name: place for place, name in enumerate(classes)}
        if numbered and not set(column.codes) & set(classes):
            offsets = {text: number - meaning.first for text, number in numbers.items()}
            places = {text: place for text, place in offsets.items() if 0 <= place < len(classes)}
    return classes, _mapped(column, places, where, f"of {', '.join(classes[:12])}")


def _mapped(column: Coded, places: dict[str, int], where: object, which: str) -> I64:
    """The column's texts as their places; one that has none is a fault."""
    table = np.array([places.get(text, -1) for text in column.codes], np.int64)
    found = table[column.array()]
    if (wrong := int((found < 0).sum())) == 0:
        return found
    unknown = [repr(text) for text in column.codes if text not in places]
    raise DataError(
        f"{wrong} labels are none {which}: {', '.join(unknown[:SHOWN])}"
        + (" …" if len(unknown) > SHOWN else ""),
        where=where,
        fix="mend the labels, or list every class in the recipe; all classes need training images",
    )


def whole(text: str) -> int | None:
    """The whole number that a text is, None where it is something else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def groups_of(column: Coded) -> I64:
    """Numbers of patients; an image whose cell is empty is a group of its own."""
    numbers = column.array().astype(np.int64)
    unnamed = [code for text, code in column.codes.items() if text.lower() in UNKNOWN]
    alone = np.flatnonzero(np.isin(numbers, unnamed))
    numbers[alone] = len(column.codes) + np.arange(len(alone))
    return numbers


def attribute_of(column: Coded, edges: tuple[float, ...], split: U8) -> Attribute:
    """Its values, or bands between `edges`; without those, between the quartiles in training."""
    known = [text for text in column.codes if text.lower() not in UNKNOWN]
    numbers = {text: value for text in known if (value := _number(text)) is not None}
    if not edges and (len(numbers) < len(known) or len(set(numbers.values())) <= FEW):
        values = tuple(sorted(known))
        places = {text: place for place, text in enumerate(values)}
        table = np.array([places.get(text, -1) for text in column.codes], np.int32)
        return Attribute(values, table[column.array()])
    each = np.array([numbers.get(text, np.nan) for text in column.codes])[column.array()]
    bounds = np.array(edges) if edges else _quartiles(each[split == 0])
    bands = np.where(np.isnan(each), -1, np.searchsorted(bounds, each, side="right"))
    return Attribute(_bands(bounds), bands.astype(np.int32))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _quartiles(values: npt.NDArray[np.float64]) -> F64:
    values = values[~np.isnan(values)]
    return np.unique(np.quantile(values, (0.25, 0.5, 0.75))) if len(values) else np.zeros(0)


def _bands(bounds: F64) -> tuple[str, ...]:
    if not len(bounds):
        return ("all",)
    inner = [f"{a:g} to < {b:g}" for a, b in pairwise(bounds)]
    return (f"< {bounds[0]:g}", *inner, f"≥ {bounds[-1]:g}")
