"""What the check keeps of each image: small enough for a million, enough to tell two apart.

An image is looked at as the network sees it, after `Preprocess.geometry`: a picture that was saved
in another format or size is the same picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.data import Split
from lorkd_deploy.image_files import KINDS, kind_of
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress

SIDE = 32  # px of the thumbnails
CHUNK = 64  # images that a thread reads before another may take its turn
FLOOR = 0.5  # of an image's deviation: what local contrast is measured against
TRAITS = {  # of an image, which say nothing of what it shows
    "size": ("width", "height"),
    "colour": ("colour",),
    "format": ("format",),
    "brightness": ("mean", "deviation"),
    "border": ("border mean", "border deviation", "border black"),
    "burnt-in text": ("edges white", "corner white"),
}
_COLUMNS = [name for family in TRAITS.values() for name in family]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Of N images: `digests` uint8 `(N, 16)` of their pixels, `thumbs` uint8 `(N, 32, 32)` in grey,
    `traits` float32 `(N, K)`, those of `TRAITS` in order, and `side`, the usual shorter side in px.
    """

    digests: U8
    thumbs: U8
    traits: F32
    side: int

    def __len__(self) -> int:
        return len(self.thumbs)

    def family(self, name: str) -> F32:
        """The columns of one family of traits."""
        return self.traits[:, [_COLUMNS.index(column) for column in TRAITS[name]]]

    @property
    def flat(self) -> I64:
        """The images of one value alone."""
        return np.flatnonzero(self.thumbs.reshape(len(self), -1).std(axis=1) == 0)


def look(split: Split, preprocess: Preprocess, progress: Progress) -> Pictures:
    """Read every image of a split once, in threads; a bar advances by images."""
    count = len(split)
    digests = np.empty((count, 16), np.uint8)
    thumbs = np.empty((count, SIDE, SIDE), np.uint8)
    traits = np.empty((count, len(_COLUMNS)), np.float32)
    paths = getattr(split.images, "paths", None)

    def fill(start: int) -> int:
        stop = min(start + CHUNK, count)
        for place in range(start, stop):
            image = np.asarray(split.images[place])
            seen = preprocess.geometry(image)
            digests[place] = np.frombuffer(hashlib.sha256(seen.tobytes()).digest()[:16], np.uint8)
            grey = Image.fromarray(seen).convert("L")
            thumbs[place] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
            traits[place, 3:] = 0
            traits[place, :3] = (*image.shape[1::-1], _colour(seen))
            if paths is not None:
                traits[place, 3] = KINDS.index(kind_of(paths[place]))
        return stop - start

    with ThreadPoolExecutor(usable_cpus()) as pool:
        for done in pool.map(fill, range(0, count, CHUNK)):
            progress.advance(done)
    _add_traits(thumbs, traits)
    side = int(np.median(traits[:, :2].min(axis=1))) if count else SIDE
    return Pictures(digests, thumbs, traits, min(side, preprocess.size))


def _colour(image: U8) -> float:
    return float((image[..., 0] != image[..., 1]).any() or (image[..., 0] != image[..., 2]).any())


def _add_traits(thumbs: U8, traits: F32) -> None:
    """Brightness, border and burnt-in text, from the thumbnails, a block at a time."""
    ring = np.ones((SIDE, SIDE), bool)
    ring[2:-2, 2:-2] = False
    corners = np.zeros((SIDE, SIDE), bool)
    corners[:8, :8] = corners[:8, -8:] = corners[-8:, :8] = corners[-8:, -8:] = True
    for start in range(0, len(thumbs), 4096):
        block = thumbs[start : start + 4096].astype(np.float32)
        border, corner = block[:, ring], block[:, corners]
        columns = (
            block.mean(axis=(1, 2)),
            block.std(axis=(1, 2)),
            border.mean(axis=1),
            border.std(axis=1),
            (border < 8).mean(axis=1),
            (border > 200).mean(axis=1),
            (corner > 200).mean(axis=1),
        )
        traits[start : start + len(block), 4:] = np.stack(columns, axis=1)


def smoothing(side: int, reach: int) -> F32:
    """The matrix `(side, side)` that averages over `reach` neighbours, mirrored at the ends."""
    matrix = np.zeros((side, side), np.float32)
    for row in range(side):
        for offset in range(-(reach // 2), reach // 2 + 1):
            column = row + offset
            column = -column - 1 if column < 0 else column
            column = 2 * side - 1 - column if column >= side else column
            matrix[row, column] += 1 / reach
    return matrix


def shrunk(thumbs: U8, side: int) -> F32:
    """Thumbnails at `side` px, float32 `(N, side, side)`."""
    by = SIDE // side
    values = thumbs.astype(np.float32)
    if by > 1:
        values = values.reshape(-1, side, by, side, by).mean(axis=(2, 4))
    return values


def contrast(thumbs: U8, side: int) -> F32:
    """Local contrast float32 `(N, side, side)`: how much lighter than what is around it.

    Neither brightness nor contrast nor a slow shade changes it (local contrast normalisation,
    Jarrett et al. 2009). It is what two pictures are compared by.
    """
    values = shrunk(thumbs, side)
    average = smoothing(side, 5 if side <= 16 else 7)
    mean = average @ values @ average.T
    spread = np.sqrt(np.maximum(average @ (values * values) @ average.T - mean * mean, 0))
    floor = FLOOR * values.std(axis=(1, 2), keepdims=True) + 1e-3
    return np.asarray((values - mean) / (spread + floor), np.float32)


def blocks(count: int, size: int) -> Iterable[slice]:
    """Slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
