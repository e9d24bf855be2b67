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

from lorkd_deploy.experts.routing import Route, Span
from lorkd_deploy.experts.rows import (
    Weights,
    add_product,
    cheaper_form,
    mixed_product,
    multiply,
    outer,
)
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
    height, width = window.output_size(x, w0)
    y: Tensor
    rows_in_all = len(x) * height * width
    if cheaper_form(w0.shape, between(a, w0), len(a), rows_in_all) == "fused":
        y = FusedConv.apply(x, w0, a, b, bias, window, route.counts)
    else:
        spans = route.spans(height * width)
        y = LowRankConv.apply(x, w0, a, b, bias, window, route.counts, spans)
    return y


def as_rows(x: Tensor) -> Tensor:
    """`(N, C, H, W)` → `(N·H·W, C)`: a view where `x` is channels-last, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_images(rows: Tensor, size: Sequence[int]) -> Tensor:
    """`(N·H·W, C)` → `(N, C, H, W)`, a channels-last view; `size` is `(N, H, W)`."""
    return rows.view(*size, -1).permute(0, 3, 1, 2)


class FusedConv(torch.autograd.Function):
    """One dense weight and one convolution per task."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        window: Window, counts: Sequence[int],
    ) -> Tensor:  # fmt: skip
        weights = delta_weight(a, b, None, w0.shape).add_(w0)
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
    of `Cin·kw`; row `co` of piece `h` is row `co·kh + h` of B times A. So the first convolution's
    weight has A on its block diagonal, and the second's, `(Cout, kh·r·kh)`, is B itself, read
    with another shape.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        window: Window, counts: Sequence[int], spans: Sequence[Span],
    ) -> Tensor:  # fmt: skip
        inner, mix = _spread(a, w0), b.view(len(b), w0.shape[0], -1)
        y = window.convolve(x, w0, bias)
        z = as_rows(_each(window, x, inner, None, counts))
        rows = add_product(as_rows(y), z, mix.mT, spans)
        ctx.save_for_backward(x, w0, a, b, z)
        ctx.window, ctx.counts, ctx.spans = window, counts, spans
        return as_images(rows, (y.shape[0], *y.shape[2:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w0, a, b, z = ctx.saved_tensors
        needs = ctx.needs_input_grad
        inner, mix = _spread(a, w0), b.view(len(b), w0.shape[0], -1)
        dx, dw0, bias = ctx.window.gradients(dy, x, w0, (needs[0], needs[1], needs[4]))
        dy_rows = as_rows(dy)
        dz = as_images(multiply(dy_rows, mix, ctx.spans), (dy.shape[0], *dy.shape[2:]))
        dinner = torch.empty_like(inner)
        start = 0
        for place, count in enumerate(ctx.counts):
            own = slice(start, start := start + count)
            dx_own, dinner_own, _ = ctx.window.gradients(
                dz[own], x[own], inner[place], (needs[0], True, False)
            )
            dinner[place] = dinner_own
            if dx is not None:
                dx[own] += dx_own
        db = outer(dy_rows, z, len(b), ctx.spans).reshape(b.shape)
        return dx, dw0, _gather(dinner, a), db, bias, None, None, None


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


def _spread(a: Tensor, w0: Tensor) -> Tensor:
    """A as a convolution, if interleaved on the block diagonal: `(P, between, Cin, kh, kw)`."""
    if _is_separable(a, w0):
        return a.view(*a.shape[:2], *w0.shape[1:])
    tasks, rows, columns = a.shape
    kh = w0.shape[2]
    spread = a.new_zeros(tasks, kh, rows, kh, columns)
    spread.diagonal(dim1=1, dim2=3).copy_(a.unsqueeze(-1))
    return spread.view(tasks, kh * rows, *w0.shape[1:])


def _gather(spread: Tensor, a: Tensor) -> Tensor:
    """The transpose of `_spread`: the blocks on the diagonal, summed."""
    if _is_separable(a, spread[0]):
        return spread.reshape(a.shape)
    tasks, rows, columns = a.shape
    kh = spread.shape[3]
    return spread.view(tasks, kh, rows, kh, columns).diagonal(dim1=1, dim2=3).sum(-1)
