"""Pictures that are the same, or nearly: exact by hash, near ones by local contrast.

Near ones are looked for among all pairs by one matrix product of 256 numbers an image, from which
what all images of a task share (the round view of a fundus, a chest's outline) is taken out. What
looks alike there is compared once more, finer and without pixels that are white or black in one of
the two alone. Mirrored pictures are looked for too: a training that flips shows them anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64, I64, U8
from lorkd_deploy.datacheck.pictures import Pictures, blocks, contrast, smoothing
from lorkd_deploy.progress import Progress

COARSE, FINE = 16, 32  # px
CANDIDATE = 0.75  # correlation at COARSE from which a pair is compared once more
LIMITS = {FINE: 0.90, COARSE: 0.93}  # correlation from which a pair are twins, by the side compared
SMALL = 56  # px; images with a shorter side have no detail to compare at FINE
ROWS = 1024  # queries of one matrix product
COLUMNS = 16384
WHITE, BLACK = 250, 8
LEAST_KEPT = 0.15  # of the pixels; where fewer are left, all count


@dataclass(frozen=True, eq=False)
class Pairs:
    """`first` and `second` int64 `(P,)` are places in two lists; `likeness` 1: the same pixels."""

    first: I64
    second: I64
    likeness: F64
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)


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
    later = pairs.first != pairs.second
    return Pairs(
        pairs.first[later], pairs.second[later], pairs.likeness[later], pairs.mirrored[later]
    )


def near(one: Pictures, other: Pictures, common: Common, progress: Progress) -> Pairs:
    """Pairs of an image of `one` and one of `other` that are nearly the same picture.

    A bar advances by images of `one`. Where `other` is `one`, each pair comes once, and an image
    isn't its own twin.
    """
    itself = one is other
    known = [(part, common.coarse(other.thumbs[part])) for part in blocks(len(other), COLUMNS)]
    found: list[Pairs] = []
    for rows in blocks(len(one), ROWS):
        asked = one.thumbs[rows]
        for mirrored in (False, True):
            turned = asked[:, :, ::-1] if mirrored else asked
            left = common.coarse(turned)
            for columns, right in known:
                if itself and columns.stop <= rows.start:
                    continue
                alike = left @ right.T >= CANDIDATE
                first, second = np.nonzero(alike)
                if itself:
                    keep = second + columns.start > first + rows.start
                    first, second = first[keep], second[keep]
                for part in blocks(len(first), ROWS):
                    i, j = first[part], second[part] + columns.start
                    likeness = common.likeness(turned[i], other.thumbs[j])
                    twins = likeness >= LIMITS[common.side]
                    found.append(
                        Pairs(i[twins] + rows.start, j[twins], likeness[twins],
                              np.full(int(twins.sum()), mirrored))
                    )  # fmt: skip
        progress.advance(rows.stop - rows.start)
    return _joined(found)


def _joined(parts: list[Pairs]) -> Pairs:
    """All pairs, each once: a picture that is its own mirror image is not two twins."""
    first = np.concatenate([p.first for p in parts] or [np.zeros(0, np.int64)])
    second = np.concatenate([p.second for p in parts] or [np.zeros(0, np.int64)])
    likeness = np.concatenate([p.likeness for p in parts] or [np.zeros(0)])
    mirrored = np.concatenate([p.mirrored for p in parts] or [np.zeros(0, bool)])
    order = np.lexsort((mirrored, -likeness, second, first))
    first, second = first[order], second[order]
    new = np.ones(len(order), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    order = order[new]
    return Pairs(first[new], second[new], likeness[order], mirrored[order])


class Common:
    """What the images of a task have in common, to be taken out before two are compared."""

    def __init__(self, train: Pictures) -> None:
        self.side = FINE if train.side >= SMALL else COARSE
        chosen = train.thumbs[:: max(1, len(train) // 4096)]
        self._means = {side: contrast(chosen, side).mean(axis=0) for side in (COARSE, FINE)}

    def coarse(self, thumbs: U8) -> F32:
        """Unit vectors float32 `(N, 256)`, whose products are correlations."""
        flat = (contrast(thumbs, COARSE) - self._means[COARSE]).reshape(len(thumbs), -1)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        plain = thumbs.reshape(len(thumbs), -1).std(axis=1) < 1
        length[plain] = np.inf  # an image of one value is like no other
        return np.asarray(flat / np.maximum(length, 1e-6), np.float32)

    def likeness(self, one: U8, other: U8) -> F64:
        """Correlation of the local contrast of P pairs, thumbnails `(P, 32, 32)` each.

        Only what lies inside both pictures counts: not what is black or white, and not its edge,
        since the round view of a camera is no sign of a twin.
        """
        a, b = contrast(one, self.side), contrast(other, self.side)
        kept = self._kept(one) & self._kept(other)
        kept[kept.mean(axis=(1, 2)) < LEAST_KEPT] = True
        mean = self._means[self.side]
        a, b = np.where(kept, a - mean, 0), np.where(kept, b - mean, 0)
        product = (a * b).sum(axis=(1, 2))
        size = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
        return np.asarray(product / np.maximum(size, 1e-9), np.float64)

    def _kept(self, thumbs: U8) -> npt.NDArray[np.bool_]:
        """Which pixels `(P, side, side)` can be compared."""
        by = FINE // self.side
        lost = ((thumbs >= WHITE) | (thumbs <= BLACK)).astype(np.float32)
        lost = lost.reshape(len(thumbs), self.side, by, self.side, by).max(axis=(2, 4))
        near = smoothing(self.side, 5)
        around = (near @ lost @ near.T) < 1e-3
        alone = lost == 0
        enough = around.mean(axis=(1, 2)) >= LEAST_KEPT
        return np.asarray(np.where(enough[:, None, None], around, alone), bool)


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
