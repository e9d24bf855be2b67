# ruff: noqa: PLR0917 (autograd.Function.forward takes its tensors one by one)
"""Mixed convolutions, for samples sorted by task; those of 1 × 1 are products of rows.

With larger kernels both forms take `x` `(N, Cin, H, W)`, `w0` `(Cout, Cin, kh, kw)`, stacked
factors `a` and `b` of the `P` tasks present in either factorisation (`delta.factor_shapes`; α / r
is in `b` already), and give `(N, Cout, H', W')`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorkd_deploy.experts.routing import Route
from lorkd_deploy.experts.rows import (
    Weights,
    add_product,
    cheaper_form,
    mixed_product,
    multiply,
    outer,
)
from lorkd_deploy.experts.taps import Grid, Projection, area
from lorkd_deploy.lowrank.delta import delta_weight

_backward = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the image; padding is zeros, the same on both sides."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """H' and W'."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        height, width = (
            (size + 2 * padding - r) // stride + 1
            for size, padding, r, stride in zip(
                x.shape[2:], self.padding, reach, self.stride, strict=True
            )
        )
        return height, width

    def grid(self, x: Tensor, weight: Tensor) -> Grid:
        """Where the kernel stands on `x`."""
        made, given = self.output_size(x, weight), (x.shape[2], x.shape[3])
        kernel = tuple(weight.shape[2:])
        return Grid(kernel, given, made, self.stride, self.padding, self.dilation)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Those wanted of dx, dweight and dbias."""
        sizes = [weight.shape[0]] if wanted[2] else None
        result: tuple[Tensor | None, Tensor | None, Tensor | None] = _backward(
            dy, x, weight, sizes, self.stride, self.padding, self.dilation, False, [0, 0], 1, wanted
        )
        return result


def mixed_convolution(x: Tensor, weights: Weights, window: Window, route: Route) -> Tensor:
    """`(N, Cin, H, W)` → `(N, Cout, H', W')`, each sample by its own task's kernel."""
    w0, a, b, bias = weights
    if w0.shape[2:] == (1, 1) and not any(window.padding):
        x = x[:, :, :: window.stride[0], :: window.stride[1]]
        rows = mixed_product(as_rows(x), weights._replace(w0=w0.flatten(1)), route)
        return as_images(rows, (x.shape[0], *x.shape[2:]))
    y: Tensor
    places = len(x) * x.shape[2] * x.shape[3]
    if cheaper_form(w0.shape, between(a, w0), len(a), places) == "fused":
        y = FusedConv.apply(x, w0, a, b, bias, window, route.counts)
    else:
        y = LowRankConv.apply(x, w0, a, b, bias, window, route)
    return y


def as_rows(x: Tensor) -> Tensor:
    """`(N, C, H, W)` → `(N·H·W, C)`: a view where `x` is channels-last, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_images(rows: Tensor, size: Sequence[int]) -> Tensor:
    """`(N·H·W, C)` → `(N, C, H, W)`, a channels-last view; `size` is `(N, H, W)`."""
    return rows.view(*size, -1).permute(0, 3, 1, 2)


class FusedConv(torch.autograd.Function):
    """One dense weight and one convolution per task.

    Passes over the activations beyond the plain layer's own: two of y forward and two of dx
    backward, since torch's convolution can't write into a slice of the batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        window: Window, counts: Sequence[int],
    ) -> Tensor:  # fmt: skip
        # As its updates lie: adding it channels-last would jump through memory once for each task.
        weights = delta_weight(a, b, None, w0.shape).add_(w0.contiguous())
        ctx.save_for_backward(x, a, b, weights)
        ctx.window, ctx.counts = window, counts
        return _each(window, x, weights, bias, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, a, b, weights = ctx.saved_tensors
        dw = torch.empty_like(weights)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        start = 0
        for place, count in enumerate(ctx.counts):
            own = slice(start, start := start + count)
            dx_own, dw_own, _ = ctx.window.gradients(
                dy[own], x[own], weights[place], (dx is not None, True, False)
            )
            dw[place] = dw_own
            if dx is not None:
                dx[own] = dx_own
        flat = dw.reshape(len(a), b.shape[1], a.shape[2])
        bias = dy.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        return dx, dw.sum(0), b.mT @ flat, flat @ a.mT, bias, None, None


class LowRankConv(torch.autograd.Function):
    """One convolution of W0 for all samples, and for each task one to r or r·kh² channels.

    Separable factors are such a chain as they stand: A is a convolution to r channels. The
    papers' ΔW, `view(B @ A)`, is one too: cut its flattened `Cin·kh·kw` columns into `kh` pieces
    of `Cin·kw`; row `co` of piece `h` is row `co·kh + h` of B times A. So the first convolution is
    A for each piece, and the second's weight, `(Cout, kh·r·kh)`, is B itself, read with another
    shape. Passes over the activations beyond the plain layer's own: one of x and two of y forward,
    one of x, two of dx and two of dy backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        window: Window, route: Route,
    ) -> Tensor:  # fmt: skip
        y = window.convolve(x, w0, bias)
        grid = window.grid(x, w0)
        z = Projection(a, w0, grid, route.counts)(as_rows(x))
        spans = route.spans(area(grid.made))
        rows = add_product(as_rows(y), z, _mix(b, w0).mT, spans)
        ctx.save_for_backward(x, w0, a, b, z)
        ctx.window, ctx.route = window, route
        return as_images(rows, (y.shape[0], *y.shape[2:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w0, a, b, z = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grid = ctx.window.grid(x, w0)
        spans = ctx.route.spans(area(grid.made))
        dx, dw0, bias = ctx.window.gradients(dy, x, w0, (needs[0], needs[1], needs[4]))
        dy_rows = as_rows(dy)
        dz = multiply(dy_rows, _mix(b, w0), spans)
        db = outer(dy_rows, z, len(b), spans).reshape(b.shape)
        dx_rows = None if dx is None else as_rows(dx)
        projection = Projection(a, w0, grid, ctx.route.counts)
        da = projection.gradients(dz, as_rows(x), dx_rows)
        dx = None if dx_rows is None else as_images(dx_rows, (len(x), *grid.given))
        return dx, dw0, da, db, bias, None, None


def _mix(b: Tensor, w0: Tensor) -> Tensor:
    """B as the weight behind the channels between: `(P, Cout, channels)`."""
    return b.view(len(b), w0.shape[0], -1)


def _each(
    window: Window, x: Tensor, weights: Tensor, bias: Tensor | None, counts: Sequence[int]
) -> Tensor:
    """Each task's samples by its own weight, written straight into one output."""
    y = None
    start = 0
    for weight, count in zip(weights, counts, strict=True):
        part = window.convolve(x[start : start + count], weight, bias)
        if y is None:
            last = part.is_contiguous(memory_format=torch.channels_last)
            y = torch.empty(
                (len(x), *part.shape[1:]), dtype=part.dtype, device=part.device,
                memory_format=torch.channels_last if last else torch.contiguous_format,
            )  # fmt: skip
        y[start : start + count] = part
        start += count
    assert y is not None
    return y


def between(a: Tensor, w0: Tensor) -> int:
    """Channels between the two convolutions of the low-rank path."""
    return a.shape[1] if _is_separable(a, w0) else a.shape[1] * w0.shape[2]


def _is_separable(a: Tensor, w0: Tensor) -> bool:
    """Whether rows of A are whole kernels; with kh = 1 the two factorisations are one."""
    return a.shape[2] == w0[0].numel()
