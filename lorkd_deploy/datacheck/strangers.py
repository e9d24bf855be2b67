"""Test images that no training image resembles: another camera, another view, a broken file."""

from __future__ import annotations

import numpy as np

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.datacheck.pictures import SIDE, Pictures, blocks

COARSE = 8  # px; what is compared is how a picture looks from afar
SAMPLE = 2000  # training images that say how far apart training images are
FAR = 1.5  # times the distance that 1 in 200 training images is from all others
MOST = 100_000  # training images that are compared with


def strangers(train: Pictures, groups: I64 | None, asked: Pictures) -> I64:
    """The images of `asked` that are farther from every training image than those are among
    themselves: by `FAR` times their 99.5th percentile. A patient's own images don't count there.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(train))[:MOST])
    known = _afar(train, chosen)
    mean, spread = known.mean(axis=0), np.maximum(known.std(axis=0), 1)
    known = (known - mean) / spread
    sample = rng.permutation(len(chosen))[:SAMPLE]
    own = np.arange(len(chosen)) if groups is None else groups[chosen]
    usual = _nearest(known[sample], known, own[sample], own)
    distances = _nearest((_afar(asked, np.arange(len(asked))) - mean) / spread, known)
    return np.flatnonzero(distances > FAR * np.percentile(usual, 99.5))


def _afar(pictures: Pictures, chosen: I64) -> F32:
    by = SIDE // COARSE
    values = pictures.thumbs[chosen].reshape(-1, COARSE, by, COARSE, by).mean(axis=(2, 4))
    return np.asarray(values.reshape(len(values), -1), np.float32)


def _nearest(asked: F32, known: F32, mine: I64 | None = None, theirs: I64 | None = None) -> F64:
    """Distance of each of `asked` to the nearest of `known` that isn't of the same group."""
    squares = (known * known).sum(axis=1)
    found = np.empty(len(asked))
    for rows in blocks(len(asked), 512):
        distance = squares - 2 * asked[rows] @ known.T
        if mine is not None and theirs is not None:
            distance[mine[rows][:, None] == theirs[None, :]] = np.inf
        found[rows] = distance.min(axis=1) + (asked[rows] ** 2).sum(axis=1)
    return np.sqrt(np.maximum(found, 0))
