"""Knowledge separation: a mixed batch through one layer, each sample by its own task's weight.

Neither of the two forms builds a weight for a sample, as the released code does (LoRKD, CVPR
2024, "efficient knowledge separation"): `choice` says which is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorkd_deploy.experts.choice import choose
from lorkd_deploy.experts.convolutions import (
    FusedConv,
    LowRankConv,
    Window,
    as_images,
    as_rows,
    between,
)
from lorkd_deploy.experts.routing import Route
from lorkd_deploy.experts.rows import FusedRows, LowRankRows, Span

if TYPE_CHECKING:
    from lorkd_deploy.experts.layers import ExpertConv2d, ExpertLinear


class Weights(NamedTuple):
    """W0, and A and B · α/r of the tasks present, stacked in the route's order."""

    w0: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None


def separate_linear(layer: ExpertLinear, x: Tensor, route: Route) -> Tensor:
    """`(N, …, Cin)` → `(N, …, Cout)`, each sample by its own task's weight."""
    inputs, weights = _operands(layer, x, route)
    rows = _rows(inputs.reshape(-1, x.shape[-1]), weights, route)
    return rows.view(*x.shape[:-1], -1)


def separate_conv2d(layer: ExpertConv2d, x: Tensor, route: Route) -> Tensor:
    """`(N, Cin, H, W)` → `(N, Cout, H', W')`, each sample by its own task's weight."""
    channels_last = _is_channels_last(x) or _is_channels_last(layer.weight)
    inputs, weights = _operands(layer, x, route)
    images, window = _window(layer, inputs)
    if weights.w0.shape[2:] == (1, 1) and not any(window.padding):
        images = images[:, :, :: window.stride[0], :: window.stride[1]]
        pointwise = weights._replace(w0=weights.w0.flatten(1))
        rows = _rows(as_rows(images), pointwise, route)
        y = as_images(rows, (images.shape[0], *images.shape[2:]))
    else:
        y = _images(images, weights, window, route)
    # As torch's own: channels-last out only if input or weight is, since a caller may view() it.
    return y if channels_last else y.contiguous()


def _rows(x: Tensor, weights: Weights, route: Route) -> Tensor:
    w0, a, b, bias = weights
    spans = _spans(route, len(x) // route.size)
    fused = choose(tuple(w0.shape), a.shape[1], len(a), len(x)) == "fused"
    y: Tensor = (FusedRows if fused else LowRankRows).apply(x, w0, a, b, bias, spans)
    return y


def _images(x: Tensor, weights: Weights, window: Window, route: Route) -> Tensor:
    w0, a, b, bias = weights
    height, width = window.output_size(x, w0)
    y: Tensor
    if choose(tuple(w0.shape), between(a, w0), len(a), len(x) * height * width) == "fused":
        y = FusedConv.apply(x, w0, a, b, bias, window, route.counts)
    else:
        spans = _spans(route, height * width)
        y = LowRankConv.apply(x, w0, a, b, bias, window, route.counts, spans)
    return y


def _spans(route: Route, rows: int) -> list[Span]:
    """The route's groups, for a layer with `rows` rows a sample."""
    return [
        Span(group.places, slice(group.rows.start * rows, group.rows.stop * rows))
        for group in route.groups
    ]


def _operands(
    layer: ExpertConv2d | ExpertLinear, x: Tensor, route: Route
) -> tuple[Tensor, Weights]:
    """Input and weights, in autocast's type where it is on."""
    scale = layer.scale()
    if isinstance(scale, Tensor):
        scale = route.pick(scale)
    weights = Weights(layer.weight, route.pick(layer.A), route.pick(layer.B) * scale, layer.bias)
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
        weights = Weights(*(None if w is None else w.to(dtype) for w in weights))  # type: ignore[arg-type]
    return x, weights


def _window(layer: ExpertConv2d, x: Tensor) -> tuple[Tensor, Window]:
    """The layer's input, padded where the window can't do it, and its window."""
    stride, dilation = tuple(layer.stride), tuple(layer.dilation)
    zeros = layer.padding_mode == "zeros"
    if zeros and not isinstance(layer.padding, str):
        return x, Window(stride, tuple(layer.padding), dilation)
    left, right, top, bottom = around = layer._reversed_padding_repeated_twice
    if zeros and left == right and top == bottom:
        return x, Window(stride, (top, left), dilation)
    padded = pad(x, around, mode="constant" if zeros else layer.padding_mode)
    return padded, Window(stride, (0, 0), dilation)


def _is_channels_last(x: Tensor) -> bool:
    """By strides, as torch decides: also for a slice of channels, and for 1 × 1 weights."""
    return x.stride(1) == 1 and x.stride(3) >= x.shape[1] > 1
