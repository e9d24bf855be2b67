# ruff: noqa: PLR0917 (autograd.Function.forward takes its tensors one by one)
"""Mixed products of matrix rows: y = (W0 + B_t A_t) h for rows sorted by task, in two exact forms.

Both take `x` `(M, Cin)`, `w0` `(Cout, Cin)`, `a` `(P, r, Cin)`, `b` `(P, Cout, r)` (α / r is in
`b` already) for the `P` tasks present, and give `(M, Cout)`. A `Span` is a group of tasks with
equally many rows: one batched matrix product. Derivatives are written out, since autograd's own
would copy each slice of the rows into a tensor of the batch's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lorkd_deploy.experts.routing import Route, Span
from lorkd_deploy.lowrank.delta import delta_weight

# Where torch's grouped product replaces one product per span: in bf16 on a GPU it is one kernel
# for all (not run on one by us). In fp32 and fp16 torch waits for the GPU and takes one group after
# another, and on a CPU it takes as long (within 5 % for 10 and 100 uneven tasks).
GROUPED = {"cuda": torch.bfloat16}


class Weights(NamedTuple):
    """W0, and A and B · α/r of the tasks present, stacked in the route's order."""

    w0: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None


def mixed_product(x: Tensor, weights: Weights, route: Route) -> Tensor:
    """Rows `(M, Cin)` → `(M, Cout)`, the M / N rows of each sample by its own task's weight."""
    w0, a, b, bias = weights
    fused = cheaper_form(w0.shape, a.shape[1], len(a), len(x)) == "fused"
    spans = route.spans(len(x) // route.size)
    y: Tensor = (FusedRows if fused else LowRankRows).apply(x, w0, a, b, bias, spans)
    return y


def cheaper_form(
    shape: Sequence[int], width: int, tasks: int, rows: int
) -> Literal["fused", "low_rank"]:
    """The cheaper form for one layer and batch, from shapes alone; results are the same.

    `fused` builds a dense weight for each task present, so it costs passes over `tasks` weights.
    `low_rank` runs W0 once for all and each task's factors beside it, so it costs passes over the
    activations, or for kernels larger than a pixel a convolution to `width` channels more.

    `shape` is the weight's, `(Cout, Cin)` or `(Cout, Cin, kh, kw)`; `width` the channels between
    the factors: the largest r, or for larger kernels, interleaved, r·kh²; `tasks` those present;
    `rows` the positions of all samples together, of a larger kernel's input. The constants are
    from timings of forward and backward on an AVX-512 CPU. Of matrices: 2.5 ns per number of a
    fused weight against 0.6 ns per activation at rank 4. Of larger kernels: 18 ns per number of a
    fused weight, which the convolution must reorder for each task, and 1.2 ms for a task's own
    calls, against 14 ns per number that a tap makes (`taps.py`) and 40 ns per number of A.
    """
    cout, cin = shape[:2]
    kh, kw = (*shape[2:], 1, 1)[:2]
    taps = kh * kw
    if taps == 1:
        fused = 4.0 * tasks * cin * cout
        low_rank = rows * (cin + cout) * (4 + width) / 8
    else:
        fused = tasks * (18.0 * cout * cin * taps + 1.2e6)
        low_rank = width * (14.0 * rows * taps + 40.0 * tasks * cin)
    return "fused" if fused < low_rank else "low_rank"


def blocks(rows: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """Each span's rows of `rows` `(M, C)` as `(tasks, rows per task, C)`; views.

    By one split: a slice of each would be a call of Python more, and an uneven batch has many.
    """
    parts = torch.split(rows, [where.stop - where.start for _, where in spans])
    wide = rows.shape[1]
    return [
        part.view(tasks.stop - tasks.start, -1, wide)
        for part, (tasks, _) in zip(parts, spans, strict=True)
    ]


def stacks(w: Tensor, spans: Sequence[Span]) -> tuple[Tensor, ...]:
    """Each span's tasks of `w` `(P, …)`; views."""
    return torch.split(w, [tasks.stop - tasks.start for tasks, _ in spans])


def multiply(x: Tensor, w: Tensor, spans: Sequence[Span]) -> Tensor:
    """Rows `(M, K)` times their own task's matrix of `w` `(P, K, C)`: `(M, C)`."""
    if _grouped(x, w.shape[2], spans):
        return functional.grouped_mm(x, w, offs=_ends(x, spans))
    y = x.new_empty(x.shape[0], w.shape[2])
    for into, part, own in zip(blocks(y, spans), blocks(x, spans), stacks(w, spans), strict=True):
        torch.bmm(part, own, out=into)
    return y


def add_product(y: Tensor, x: Tensor, w: Tensor, spans: Sequence[Span]) -> Tensor:
    """`y += multiply(x, w, spans)`, in place."""
    for into, part, own in zip(blocks(y, spans), blocks(x, spans), stacks(w, spans), strict=True):
        into.baddbmm_(part, own)
    return y


def outer(y: Tensor, x: Tensor, tasks: int, spans: Sequence[Span]) -> Tensor:
    """Sum over each task's rows of y xᵀ: `(M, C)`, `(M, K)` → `(P, C, K)`."""
    if y.shape[1] > x.shape[1]:  # many times faster with the narrow one transposed (MKL, CPU)
        return outer(x, y, tasks, spans).mT
    if _grouped(x, y.shape[1], spans):
        return functional.grouped_mm(y.mT, x, offs=_ends(x, spans))
    sums = x.new_empty(tasks, y.shape[1], x.shape[1])
    each = zip(stacks(sums, spans), blocks(y, spans), blocks(x, spans), strict=True)
    for into, left, right in each:
        torch.bmm(left.mT, right, out=into)
    return sums


def _grouped(x: Tensor, other: int, spans: Sequence[Span]) -> bool:
    """Whether to use torch's grouped product: it wants lines of 16 bytes."""
    lines = all(size * x.element_size() % 16 == 0 for size in (x.shape[1], other))
    return GROUPED.get(x.device.type) == x.dtype and lines and len(spans) > 1


def _ends(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """Where each task's rows end, int32 `(P,)`."""
    each = [
        (where.stop - where.start) // (tasks.stop - tasks.start)
        for tasks, where in spans
        for _ in range(tasks.stop - tasks.start)
    ]
    ends = torch.tensor(each).cumsum(0, dtype=torch.int32)
    return ends.to(x.device, non_blocking=True)  # a blocking copy would wait for the GPU


class FusedRows(torch.autograd.Function):
    """One dense weight per task: no pass over the activations beyond the plain layer's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        spans: Sequence[Span],
    ) -> Tensor:  # fmt: skip
        weights = delta_weight(a, b, None, w0.shape).add_(w0)
        ctx.save_for_backward(x, a, b, weights)
        ctx.spans = spans
        y = multiply(x, weights.mT, spans)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, a, b, weights = ctx.saved_tensors
        dx = multiply(dy, weights, ctx.spans) if ctx.needs_input_grad[0] else None
        dw = outer(dy, x, len(weights), ctx.spans)
        bias = dy.sum(0) if ctx.needs_input_grad[4] else None
        return dx, dw.sum(0), b.mT @ dw, dw @ a.mT, bias, None


class LowRankRows(torch.autograd.Function):
    """One product of W0 for all rows, and r more numbers per row for its own task.

    Those are kept as columns, `(P, r, rows per task)` for each span: matrices a few columns wide
    are several times slower than ones a few rows high. Passes over the activations beyond the plain
    layer's own: one of x and two of y forward, two of x, two of dx and two of dy backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
        spans: Sequence[Span],
    ) -> Tensor:  # fmt: skip
        y = x @ w0.t() if bias is None else torch.addmm(bias, x, w0.t())
        b = b.mT.contiguous()
        columns = _project(x, a, spans)
        ctx.save_for_backward(x, w0, a, b, *columns)
        ctx.spans = spans
        return _expand(y, columns, b, spans)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w0, a, b, *columns = ctx.saved_tensors
        spans = ctx.spans
        dcolumns = _project(dy, b, spans)
        dx = _expand(dy @ w0, dcolumns, a, spans) if ctx.needs_input_grad[0] else None
        dw0 = dy.t() @ x if ctx.needs_input_grad[1] else None
        da = torch.cat([d @ part for d, part in zip(dcolumns, blocks(x, spans), strict=True)])
        db = torch.cat([c @ part for c, part in zip(columns, blocks(dy, spans), strict=True)])
        bias = dy.sum(0) if ctx.needs_input_grad[4] else None
        return dx, dw0, da, db.mT, bias, None


def _project(x: Tensor, w: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """Rows `(M, C)` by their own task's `w` `(P, r, C)`: columns `(tasks, r, rows)` per span."""
    each = zip(stacks(w, spans), blocks(x, spans), strict=True)
    return [torch.bmm(own, part.mT) for own, part in each]


def _expand(y: Tensor, columns: list[Tensor], w: Tensor, spans: Sequence[Span]) -> Tensor:
    """`y += columnsᵀ w`, in place, with each task's own `w` `(P, r, C)`."""
    each = zip(columns, blocks(y, spans), stacks(w, spans), strict=True)
    for part, into, own in each:
        into.baddbmm_(part.mT, own)
    return y
