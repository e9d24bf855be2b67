"""A training set that stays on the GPU: a batch is one gather there, and no image travels twice.

Not run on a GPU by us: a test holds it against the images that the CPU makes, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorkd_deploy.arrays import I64, U8

SHARE = 0.5  # of the GPU's free memory, at most: the training needs the rest


class Moves(NamedTuple):
    """Which images are mirrored, `(N,)`, and how they are then shifted: line i of an image becomes
    line `i + offset - reach` of what it was, `offsets` being `(N, 2)` for rows and columns, and
    what lies beyond the border is reflected. None: they stay in their place.
    """

    flips: npt.NDArray[np.bool_]
    offsets: I64 | None
    reach: int


class Held:
    """The training images of all tasks, uint8 `(n_t, S, S, 3)` each, on `device`."""

    def __init__(self, images: Sequence[U8], device: torch.device) -> None:
        self.side = images[0].shape[1]
        self._starts = np.cumsum([0, *(len(part) for part in images)])[:-1]
        shape = (sum(len(part) for part in images), *images[0].shape[1:])
        self._images = torch.empty(shape, dtype=torch.uint8, device=device)  # never there twice
        for start, part in zip(self._starts, images, strict=True):
            self._images[start : start + len(part)] = torch.from_numpy(part)

    def batch(self, indices: Sequence[I64], moves: Moves) -> Tensor:
        """uint8 `(N, S, S, 3)` on the device: of each task the images at `indices`, moved."""
        chosen = np.concatenate(
            [own + start for own, start in zip(indices, self._starts, strict=True)]
        )
        rows, columns = self._lines(moves)
        columns = np.where(moves.flips[:, None], self.side - 1 - columns, columns)
        packed = torch.from_numpy(np.concatenate([chosen[:, None], rows, columns], axis=1))
        if self._images.is_cuda:
            packed = packed.pin_memory()
        places = packed.to(self._images.device, non_blocking=True)
        image, row, column = torch.split(places, [1, self.side, self.side], dim=1)
        return self._images[image[:, :, None], row[:, :, None], column[:, None, :]]

    def _lines(self, moves: Moves) -> tuple[I64, I64]:
        """Which rows and columns of each image its own are taken from, `(N, S)` each."""
        places = np.broadcast_to(np.arange(self.side), (len(moves.flips), self.side))
        if moves.offsets is None:
            return places, places
        last = self.side - 1
        moved = (np.abs(places + by[:, None] - moves.reach) for by in moves.offsets.T)
        rows, columns = (last - np.abs(last - lines) for lines in moved)
        return rows, columns


def fits(images: Sequence[U8 | None], device: torch.device) -> bool:
    """Whether all these can be held on `device`: a GPU with room, and images that are in memory."""
    if device.type != "cuda" or any(part is None for part in images):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(part.nbytes for part in images if part is not None) <= SHARE * free
