"""What the images of a task have in common, and how alike two of them are beyond that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64, U8
from lorkd_deploy.datacheck.pictures import Pictures, contrast, shrunk, smoothing

Bools = npt.NDArray[np.bool_]
COARSE, FINE = 16, 32  # px
LIMITS = {FINE: 0.90, COARSE: 0.93}  # likeness from which a pair are twins, by the side compared
# A little below that, where the picture is the same from afar and has the same shades too: what
# compression and a brighter light take from fine detail.
AFAR, LESS, SHADES = 0.90, 0.84, 0.985
SMALL = 56  # px; images with a shorter side have no detail to compare at FINE
WHITE, BLACK = 250, 8
LEAST_KEPT = 0.15  # of the pixels; where fewer are left, all count


class Common:
    """What the images of a task have in common, to be taken out before two are compared."""

    def __init__(self, train: Pictures) -> None:
        self.side = FINE if train.side >= SMALL else COARSE
        chosen = train.thumbs[:: max(1, len(train) // 4096)]
        self._means = {side: contrast(chosen, side).mean(axis=0) for side in (COARSE, FINE)}

    def coarse(self, thumbs: U8) -> F32:
        """Unit vectors float32 `(N, 256)`, whose products are correlations from afar."""
        flat = (contrast(thumbs, COARSE) - self._means[COARSE]).reshape(len(thumbs), -1)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        plain = thumbs.reshape(len(thumbs), -1).std(axis=1) < 1
        length[plain] = np.inf  # an image of one value is like no other
        return np.asarray(flat / np.maximum(length, 1e-6), np.float32)

    def compared(self, one: U8, other: U8, afar: F32) -> tuple[F64, Bools]:
        """How alike P pairs of thumbnails `(P, 32, 32)` are, and which are twins.

        Their likeness is the correlation of local contrast inside both pictures: not what is black
        or white, and not its edge, since the round view of a camera is no sign of a twin. `afar`
        are the products of their coarse vectors.
        """
        kept = self._kept(one) & self._kept(other)
        kept[kept.mean(axis=(1, 2)) < LEAST_KEPT] = True
        mean = self._means[self.side]
        likeness = _correlation(
            contrast(one, self.side) - mean, contrast(other, self.side) - mean, kept
        )
        twins = likeness >= LIMITS[self.side]
        doubtful = np.flatnonzero(~twins & (likeness >= LESS) & (afar >= AFAR))
        twins[doubtful] = self._shades(one[doubtful], other[doubtful], kept[doubtful]) >= SHADES
        return likeness, twins

    def _shades(self, one: U8, other: U8, kept: Bools) -> F64:
        """Correlation of grey values, which neither brightness nor contrast changes."""
        a, b = (_centred(shrunk(thumbs, self.side), kept) for thumbs in (one, other))
        return _correlation(a, b, kept)

    def _kept(self, thumbs: U8) -> Bools:
        """Which pixels `(P, side, side)` can be compared."""
        by = FINE // self.side
        lost = ((thumbs >= WHITE) | (thumbs <= BLACK)).astype(np.float32)
        lost = lost.reshape(len(thumbs), self.side, by, self.side, by).max(axis=(2, 4))
        near = smoothing(self.side, 5)
        around = (near @ lost @ near.T) < 1e-3
        alone = lost == 0
        enough = around.mean(axis=(1, 2)) >= LEAST_KEPT
        return np.asarray(np.where(enough[:, None, None], around, alone), bool)


def _correlation(a: F32, b: F32, kept: Bools) -> F64:
    a, b = np.where(kept, a, 0), np.where(kept, b, 0)
    product = (a * b).sum(axis=(1, 2))
    size = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray(product / np.maximum(size, 1e-9), np.float64)


def _centred(values: F32, kept: Bools) -> F32:
    mean = (values * kept).sum(axis=(1, 2)) / kept.sum(axis=(1, 2))
    return np.asarray(values - mean[:, None, None], np.float32)
