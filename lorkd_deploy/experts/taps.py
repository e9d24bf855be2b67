"""A convolution to a few channels, each task's samples by its own kernel, as products of rows.

A kernel's every tap is a pointwise product, and its output their sum, each moved by its tap's
place. To the few channels between low-rank factors this is cheaper than a convolution a task: one
product gives all taps' outputs of all samples (T convolutions would each reorder their kernel and
samples), of which `kh·kw` are added up. No zeros are multiplied: the papers' A, interleaved, is
`kh` kernels, each for a part of the channels (`Part`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorkd_deploy.experts.routing import Span, spans_of
from lorkd_deploy.experts.rows import add_product, multiply, outer

IN_CACHE = 1 << 18  # numbers that the taps make at a time


@dataclass(frozen=True)
class Grid:
    """Where a kernel `(kh, kw)` stands: input `(H, W)`, output `(H', W')`, stride and so on."""

    kernel: tuple[int, ...]
    given: tuple[int, int]
    made: tuple[int, int]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def taps(self) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """For each tap, row by row, the input's places that it reads, and the output's for them."""
        down, across = (self._along(axis) for axis in (0, 1))
        for top in down:
            for left in across:
                yield (top[0], left[0]), (top[1], left[1])

    def _along(self, axis: int) -> list[tuple[slice, slice]]:
        size, stride = self.given[axis], self.stride[axis]
        places = []
        for tap in range(self.kernel[axis]):
            shift = tap * self.dilation[axis] - self.padding[axis]
            first = max(0, -(shift // stride))  # the first output whose tap isn't in the padding
            end = max(first, min(self.made[axis], (size - 1 - shift) // stride + 1))
            start = first * stride + shift
            read = slice(start, start + (end - first - 1) * stride + 1, stride)
            places.append((read if end > first else slice(0, 0), slice(first, end)))
        return places


class Part(NamedTuple):
    """The `channels` that a kernel is for, and its `(C, kh, kw)` numbers' place among theirs.

    With the separable factorisation there is one part, of all channels. `view(B A)` cuts the
    flattened `Cin·kh·kw` numbers into `kh` pieces of `Cin·kw`, each multiplied by A; where `kh`
    doesn't divide `Cin` a piece begins and ends within a channel, `before` and `after` its numbers.
    """

    channels: slice
    before: int
    after: int


@dataclass(frozen=True)
class Projection:
    """The convolution by each task's A: `factor` `(P, r, Cin·kh·kw)` or `(P, r·kh, Cin·kw)`.

    `weight` is the layer's, `(Cout, Cin, kh, kw)`; `counts` are each task's samples. A few tasks
    at a time, so that what the taps make is still in the processor's cache when it is added up.
    """

    factor: Tensor
    weight: Tensor
    grid: Grid
    counts: Sequence[int]

    def __call__(self, x: Tensor) -> Tensor:
        """Rows `(N·H·W, Cin)` → `(N·H'·W', parts · rows of A)`."""
        parts, width = self._parts(), self.factor.shape[1]
        samples = x.view(-1, area(self.grid.given), x.shape[1])
        z = x.new_zeros(len(samples), *self.grid.made, len(parts), width)
        for tasks, own, spans in self._groups():
            rows, into = samples[own].flatten(0, 1), z[own]
            for place, part in enumerate(parts):
                each = multiply(rows[:, part.channels], self._products(part, tasks), spans)
                each = each.view(-1, *self.grid.given, area(self.grid.kernel), width)
                for tap, (read, made) in enumerate(self.grid.taps()):
                    into[:, made[0], made[1], place] += each[:, read[0], read[1], tap]
        return z.view(-1, len(parts) * width)

    def gradients(self, dz: Tensor, x: Tensor, dx: Tensor | None) -> Tensor:
        """A's, from `dz` of the output and the input `x`, whose own is added to `dx` if given."""
        parts, width = self._parts(), self.factor.shape[1]
        samples = x.view(-1, area(self.grid.given), x.shape[1])
        dz = dz.view(len(samples), *self.grid.made, len(parts), width)
        dfactor = torch.zeros_like(self.factor)
        for tasks, own, spans in self._groups():
            rows = samples[own].flatten(0, 1)
            drows = None if dx is None else dx.view(samples.shape)[own].flatten(0, 1)
            for place, part in enumerate(parts):
                each = self._taken(dz[own, :, :, place])
                if drows is not None:
                    back = self._products(part, tasks).mT
                    add_product(drows[:, part.channels], each, back, spans)
                sums = outer(rows[:, part.channels], each, tasks.stop - tasks.start, spans)
                flat = sums.view(*sums.shape[:2], -1, width).permute(0, 3, 1, 2).flatten(2)
                dfactor[tasks] += flat[:, :, part.before : flat.shape[2] - part.after]
        return dfactor

    def _taken(self, dz: Tensor) -> Tensor:
        """What each place of the input gives by each tap: `(n·H·W, taps · rows of A)`."""
        width = dz.shape[-1]
        each = dz.new_zeros(len(dz), *self.grid.given, area(self.grid.kernel), width)
        for tap, (read, made) in enumerate(self.grid.taps()):
            each[:, read[0], read[1], tap] = dz[:, made[0], made[1]]
        return each.view(-1, area(self.grid.kernel) * width)

    def _groups(self) -> Iterator[tuple[slice, slice, list[Span]]]:
        """Tasks and their samples, together no more than fit the cache if they are several."""
        places = area(self.grid.given)
        most = IN_CACHE // (places * area(self.grid.kernel) * self.factor.shape[1])
        if self.factor.device.type != "cpu":  # few kernels, and large ones
            most = sum(self.counts)
        first = start = end = 0
        for task, count in enumerate((*self.counts, most)):
            if task == len(self.counts) or (task > first and end + count - start > most):
                counts = self.counts[first:task]
                yield slice(first, task), slice(start, end), spans_of(counts, places)
                first, start = task, end
            end += count

    def _parts(self) -> list[Part]:
        size, length = area(self.grid.kernel), self.factor.shape[2]
        found = []
        for start in range(0, self.weight[0].numel(), length):
            first, end = start // size, -(-(start + length) // size)
            found.append(Part(slice(first, end), start - first * size, end * size - start - length))
        return found

    def _products(self, part: Part, tasks: slice) -> Tensor:
        """A part's kernels as matrices `(tasks, C, kh·kw · rows of A)`, tap by tap."""
        kernels = pad(self.factor[tasks], (part.before, part.after))
        by_tap = kernels.view(*kernels.shape[:2], -1, area(self.grid.kernel))
        return by_tap.permute(0, 2, 3, 1).flatten(2)


def area(size: Sequence[int]) -> int:
    """How many places a size `(H, W)` has."""
    return size[0] * size[1]
