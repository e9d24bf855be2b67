"""Layers with experts: g = (W0 + ΔW_t) h for each sample's own task t (knowledge separation).

A mixed batch passes without a weight per sample, which the released code builds (LoRKD, CVPR 2024,
"efficient knowledge separation"), by the cheaper of two exact forms (`rows.cheaper_form`).

Each is the plain layer it replaces (same class, same weight, same names) with two stacks of
factors, A `(T, r·kh, Cin·kw)` and B `(T, Cout·kh, r·kh)`, or for the separable factorisation
A `(T, r, Cin·kh·kw)` and B `(T, Cout, r)`. Where ranks differ between tasks, `r` is the largest
(1 where all are 0), and the smaller experts' surplus rows of A and columns of B are zero: their
gradients are then exactly zero too, so they stay zero under any optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lorkd_deploy.experts.absent import ExpertStack
from lorkd_deploy.experts.convolutions import Window, mixed_convolution
from lorkd_deploy.experts.routing import Route, Router
from lorkd_deploy.experts.rows import Weights, mixed_product
from lorkd_deploy.lowrank.delta import (
    Factorisation,
    LayerKind,
    columns_per_rank,
    delta_weight,
    factor_shapes,
)


class ExpertLayer(nn.Module):
    """The factors of one layer, and what they amount to."""

    kind: ClassVar[LayerKind]
    name: str
    ranks: tuple[int, ...]
    alpha: float
    router: Router
    factorisation: Factorisation
    weight: nn.Parameter
    bias: nn.Parameter | None
    A: nn.Parameter
    B: nn.Parameter
    plain_type: type[nn.Module]

    @classmethod
    def around(
        cls,
        layer: nn.Module,
        name: str,
        ranks: Sequence[int],
        alpha: float,
        router: Router,
        *,
        factorisation: Factorisation,
    ) -> ExpertLayer:
        """An expert layer that shares `layer`'s parameters, hooks and settings."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made._parameters = dict(layer._parameters)
        made.plain_type = type(layer)
        made.name, made.ranks, made.alpha, made.router = name, tuple(ranks), alpha, router
        made.factorisation = factorisation
        made._add_factors()
        return made

    def plain(self) -> nn.Module:
        """The layer as it was before, sharing this one's weight and bias."""
        layer = self.plain_type.__new__(self.plain_type)
        mine = ("plain_type", "name", "ranks", "alpha", "router", "factorisation")
        layer.__dict__.update({k: v for k, v in self.__dict__.items() if k not in mine})
        kept = {k: v for k, v in self._parameters.items() if k not in ("A", "B")}
        layer._parameters = kept
        return layer

    def _add_factors(self) -> None:
        a, b = self._zeros()
        for mine, rows in zip(a, self._rows(), strict=True):
            if rows:
                nn.init.kaiming_uniform_(mine[:rows], a=math.sqrt(5))
        self.A, self.B = ExpertStack(a), ExpertStack(b)

    def _zeros(self) -> tuple[Tensor, Tensor]:
        """A and B of all tasks at their ranks, zero."""
        weight, rank = self.weight.detach(), max(1, *self.ranks)
        shape_a, shape_b = factor_shapes(weight.shape, rank, self.factorisation)
        tasks = len(self.ranks)
        return weight.new_zeros(tasks, *shape_a), weight.new_zeros(tasks, *shape_b)

    def set_factors(self, pairs: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        """Give each task these A and B, whatever their rank; None is rank 0. Copies."""
        unit = columns_per_rank(self.weight.shape, self.factorisation)
        self.ranks = tuple(0 if pair is None else pair[0].shape[0] // unit for pair in pairs)
        stacks = a, b = self._zeros()
        for task, pair in enumerate(pairs):
            if pair is not None:
                rows = self._rows()[task]
                a[task, :rows], b[task, :, :rows] = pair[0].to(a), pair[1].to(b)
        self.A, self.B = (ExpertStack(stack) for stack in stacks)

    def keep(self, tasks: Sequence[int]) -> None:
        """Have these tasks alone, in this order, at their ranks; their factors become zero."""
        self.ranks = tuple(self.ranks[task] for task in tasks)
        self.A, self.B = (ExpertStack(stack) for stack in self._zeros())

    def _rows(self) -> list[int]:
        """How many rows of A, and columns of B, each task has."""
        unit = columns_per_rank(self.weight.shape, self.factorisation)
        return [rank * unit for rank in self.ranks]

    def scale(self) -> float | Tensor:
        """α / r, 0 for rank 0: one number, or `(T, 1, 1)` where ranks differ."""
        scales = [self._scale(task) for task in range(len(self.ranks))]
        if len(set(scales)) == 1:
            return scales[0]
        made = torch.tensor(scales, dtype=self.A.dtype).view(-1, 1, 1)
        return made.to(self.A.device, non_blocking=True)  # else each layer would wait for a GPU

    def factors(self, task: int) -> tuple[Tensor, Tensor]:
        """A and B of one task, as `factor_shapes` says for its rank; views."""
        rows = self._rows()[task]
        return self.A[task, :rows], self.B[task, :, :rows]

    def dense_weight(self, task: int) -> Tensor:
        """W0 + ΔW_t, a new tensor."""
        a, b = self.factors(task)
        delta = delta_weight(a, b, self._scale(task), self.weight.shape)
        return self.weight + delta

    def _operands(self, x: Tensor, route: Route) -> tuple[Tensor, Weights]:
        """Input and weights, in autocast's type where it is on."""
        weights = Weights(self.weight, route.pick(self.A), self._scaled(route), self.bias)
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x = x.to(dtype)
            weights = Weights(*(None if w is None else w.to(dtype) for w in weights))  # type: ignore[arg-type]
        return x, weights

    def _scaled(self, route: Route) -> Tensor:
        """B · α/r of the tasks present; no copy of B where α/r is 1, as it is by default."""
        scale, b = self.scale(), route.pick(self.B)
        if isinstance(scale, Tensor):
            return b * route.pick(scale)
        return b if scale == 1.0 else b * scale

    def _scale(self, task: int) -> float:
        return self.alpha / self.ranks[task] if self.ranks[task] else 0.0

    def extra_repr(self) -> str:
        described = cast(Any, self.plain_type).extra_repr(self)
        return f"{described}, tasks={len(self.ranks)}, rank={max(self.ranks)}"


class ExpertConv2d(ExpertLayer, nn.Conv2d):  # type: ignore[misc]
    """`nn.Conv2d` (groups 1) with one expert per task: `(N, Cin, H, W)` → `(N, Cout, H', W')`."""

    kind = "conv2d"

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(f"{self.name}: wanted (N, C, H, W), got {tuple(input.shape)}")
        route = self.router.enter(self.name, input)
        x, weights = self._operands(input, route)
        x, window = self._window(x)
        y = mixed_convolution(x, weights, window, route)
        # As torch's own: channels-last out only if input or weight is, as a caller may view() it.
        last = _is_channels_last(input) or _is_channels_last(self.weight)
        return y if last else y.contiguous()

    def _window(self, x: Tensor) -> tuple[Tensor, Window]:
        """The layer's input, padded where the window can't do it, and its window."""
        stride, dilation = tuple(self.stride), tuple(self.dilation)
        zeros = self.padding_mode == "zeros"
        if zeros and not isinstance(self.padding, str):
            return x, Window(stride, tuple(self.padding), dilation)
        left, right, top, bottom = around = self._reversed_padding_repeated_twice
        if zeros and left == right and top == bottom:
            return x, Window(stride, (top, left), dilation)
        padded = pad(x, around, mode="constant" if zeros else self.padding_mode)
        return padded, Window(stride, (0, 0), dilation)


class ExpertLinear(ExpertLayer, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with one expert per task: `(N, …, Cin)` → `(N, …, Cout)`."""

    kind = "linear"

    def forward(self, input: Tensor) -> Tensor:
        route = self.router.enter(self.name, input)
        x, weights = self._operands(input, route)
        rows = mixed_product(x.reshape(-1, x.shape[-1]), weights, route)
        return rows.view(*input.shape[:-1], -1)


# The plain layers that can have experts: a new kind is one class above and one entry here.
EXPERT_LAYERS: dict[type[nn.Module], type[ExpertLayer]] = {
    nn.Conv2d: ExpertConv2d,
    nn.Linear: ExpertLinear,
}


def plain_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of `EXPERT_LAYERS` that `module` is one of; None where it can't have experts."""
    return next((kind for kind in EXPERT_LAYERS if isinstance(module, kind)), None)


def _is_channels_last(x: Tensor) -> bool:
    """By strides, as torch decides: also for a slice of channels, and for 1 × 1 weights."""
    return x.stride(1) == 1 and x.stride(3) >= x.shape[1] > 1
