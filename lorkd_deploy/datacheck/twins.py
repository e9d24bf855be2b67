"""Pictures that are the same, or nearly: exact by hash, near ones by local contrast.

Near ones are looked for among all pairs by products of 256 numbers an image, from which what all
images of a task share (the round view of a fundus, a chest's outline) is taken out. What looks
alike there is compared once more, finer and without pixels that are white or black in one of the
two alone. Mirrored pictures are looked for too: a training that flips shows them anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.datacheck.common import Common
from lorkd_deploy.datacheck.pictures import Pictures, blocks
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.progress import Progress

CANDIDATE = 0.75  # correlation from afar from which a pair is compared once more
MOST = 32  # such pairs of an image, the most alike: where all look alike, a check still ends
ROWS, COLUMNS = 1024, 4096  # images of one product: 16 MiB, which a processor's cache holds


@dataclass(frozen=True, eq=False)
class Pairs:
    """`first` and `second` int64 `(P,)` are places in two lists; `likeness` 1: the same pixels."""

    first: I64
    second: I64
    likeness: F64
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def part(self, chosen: npt.NDArray[np.bool_] | I64) -> Pairs:
        """Those that are `chosen`."""
        return Pairs(
            self.first[chosen], self.second[chosen], self.likeness[chosen], self.mirrored[chosen]
        )


NONE = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))


def exact(one: Pictures, other: Pictures) -> Pairs:
    """Each image of `one` that is in `other`, pixel by pixel, with the first such image there."""
    keys, places = np.unique(_keys(other), return_index=True)
    wanted = _keys(one)
    found = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    hits = np.flatnonzero(keys[found] == wanted) if len(keys) else np.zeros(0, np.int64)
    return Pairs(hits, places[found[hits]], np.ones(len(hits)), np.zeros(len(hits), bool))


def _keys(pictures: Pictures) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(pictures.digests).view("V16").reshape(-1)


def exact_within(pictures: Pictures) -> Pairs:
    """Each image of a split that repeats an earlier one of it, with the first such image."""
    pairs = exact(pictures, pictures)
    return pairs.part(pairs.first != pairs.second)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is compared with: images at `places`, each picture once, and their coarse vectors."""

    pictures: Pictures
    places: I64
    vectors: Sequence[tuple[slice, F32]]
    common: Common
    itself: bool


def near(one: Pictures, other: Pictures, common: Common, progress: Progress) -> Pairs:
    """Pairs of an image of `one` and one of `other` that are nearly, not exactly, the same picture.

    Of equal images of `other` the first stands for all. Where `other` is `one`, that holds for
    both, and each pair comes once. Of one image at most `MOST` pairs are found, as it is and
    mirrored. A bar advances by images of `one`.
    """
    places = np.sort(np.unique(_keys(other), return_index=True)[1])
    vectors = [
        (part, common.coarse(other.thumbs[places[part]])) for part in blocks(len(places), COLUMNS)
    ]
    known = _Known(other, places, vectors, common, one is other)
    asked = places if known.itself else np.arange(len(one))
    found: list[Pairs] = []
    with ThreadPoolExecutor(usable_cpus()) as pool:
        parts = list(blocks(len(asked), ROWS))
        for rows, pairs in zip(
            parts, pool.map(partial(_near_some, one, asked, known), parts), strict=True
        ):
            found.append(pairs)
            progress.advance(rows.stop - rows.start)
    progress.advance(len(one) - len(asked))
    return _joined(found)


def _near_some(one: Pictures, asked: I64, known: _Known, rows: slice) -> Pairs:
    """The pairs of the images of `one` at `asked[rows]`."""
    mine = asked[rows]
    found = []
    for mirrored in (False, True):
        thumbs = one.thumbs[mine][:, :, ::-1] if mirrored else one.thumbs[mine]
        first, second, afar = _candidates(
            known.common.coarse(thumbs), known, rows.start if known.itself else None
        )
        theirs = known.places[second]
        differ = (one.digests[mine[first]] != known.pictures.digests[theirs]).any(axis=1)
        first, theirs, afar = first[differ], theirs[differ], afar[differ]
        for part in blocks(len(first), ROWS):
            i, j = first[part], theirs[part]
            likeness, twins = known.common.compared(thumbs[i], known.pictures.thumbs[j], afar[part])
            pairs = Pairs(mine[i], j, likeness, np.full(len(i), mirrored))
            found.append(pairs.part(twins))
    return _joined(found)


def _candidates(asked: F32, known: _Known, start: int | None) -> tuple[I64, I64, F32]:
    """Row, column and correlation of what looks alike from afar; where the rows are columns from
    `start` on, of columns behind the row's own."""
    rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [asked[:0, 0]]
    for part, vectors in known.vectors:
        if start is not None and part.stop <= start:
            continue
        alike = (asked @ vectors.T).reshape(-1)
        hits = np.flatnonzero(alike >= CANDIDATE)
        row, column = np.divmod(hits, len(vectors))
        column += part.start
        if start is not None:
            later = column > row + start
            hits, row, column = hits[later], row[later], column[later]
        best = _most_alike(row, alike[hits])
        rows.append(row[best])
        columns.append(column[best])
        values.append(alike[hits[best]])
    row, column, value = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    best = _most_alike(row, value)
    return row[best], column[best], value[best]


def _most_alike(rows: I64, values: F32) -> I64:
    """The places of each row's `MOST` greatest values."""
    order = np.lexsort((-values, rows))
    ranked = rows[order]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return np.asarray(order[rank < MOST], np.int64)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs, each once: a picture that is its own mirror image is not two twins."""
    every = [NONE, *parts]
    pairs = Pairs(
        np.concatenate([p.first for p in every]),
        np.concatenate([p.second for p in every]),
        np.concatenate([p.likeness for p in every]),
        np.concatenate([p.mirrored for p in every]),
    )
    pairs = pairs.part(np.lexsort((pairs.mirrored, -pairs.likeness, pairs.second, pairs.first)))
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs.first[1:] != pairs.first[:-1]) | (pairs.second[1:] != pairs.second[:-1])
    return pairs.part(new)


def clusters(count: int, pairs: Iterator[tuple[I64, I64]]) -> I64:
    """Numbers `(count,)` of the groups that arise when the two of each pair are joined."""
    parent = np.arange(count)

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = int(parent[one])
        return one

    for first, second in pairs:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return np.array([root(one) for one in range(count)], np.int64)
