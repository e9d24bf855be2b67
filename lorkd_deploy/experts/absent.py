"""An expert whose task was absent stays where it is, under any optimiser.

The experts of a layer are stacked into one parameter: at a hundred tasks an optimiser's loop over
one parameter a task and layer would cost a fifth of a training step. An absent task's slice has a
gradient of exactly zero, but weight decay and momentum would still move it. So where a slice's
gradient is exactly zero, the slice and its part of the optimiser's state are put back after the
step, as if that expert were a parameter of its own without a gradient.

It is done by torch's own hooks around every optimiser's step, so that no training loop can forget
it. An optimiser that calls a closure inside `step` (LBFGS) sees the gradients from before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class ExpertStack(nn.Parameter):
    """A parameter `(T, …)` whose slices are moved only by a gradient of their own."""


@dataclass(frozen=True)
class _Held:
    stack: ExpertStack
    tasks: Tensor
    value: Tensor
    state: dict[str, Tensor]


_held: WeakKeyDictionary[Optimizer, list[_Held]] = WeakKeyDictionary()


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    stacks = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if isinstance(p, ExpertStack) and p.grad is not None
    ]
    _held[optimizer] = held = []
    if not stacks:
        return
    # One comparison for all layers, so that a GPU is waited for once a step.
    norms = [torch.linalg.vector_norm(p.grad, dim=(1, 2)).float() for p in stacks]
    absent = torch.split((torch.cat(norms) == 0).cpu(), [len(p) for p in stacks])
    for stack, mask in zip(stacks, absent, strict=True):
        if mask.any():
            tasks = mask.nonzero().flatten().to(stack.device)
            held.append(_Held(stack, tasks, stack.detach()[tasks], _state(optimizer, stack, tasks)))


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for held in _held.pop(optimizer, ()):
        held.stack.detach()[held.tasks] = held.value
        for name, value in _state(optimizer, held.stack, held.tasks).items():
            # State that this step has made starts from zero, as an untouched parameter's would.
            optimizer.state[held.stack][name][held.tasks] = held.state.get(
                name, torch.zeros_like(value)
            )


def _state(optimizer: Optimizer, stack: ExpertStack, tasks: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(stack, {})
    return {
        name: value[tasks]
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == stack.shape
    }


register_optimizer_step_pre_hook(_before)
register_optimizer_step_post_hook(_after)
