"""An expert whose task is absent from a batch stays where it is, under any optimiser.

The experts of a layer are stacked into one parameter: at a hundred tasks an optimiser's loop over
one parameter per task and layer would cost a fifth of a training step. An absent task's slice has
a gradient of exactly zero, but weight decay and momentum would still move it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class ExpertStack(nn.Parameter):
    """A parameter `(T, …)` of all tasks, whose slices only a gradient of their own may move.

    `torch.save` of a whole module keeps it so, as `copy.deepcopy` does.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ExpertStack, (self.data, self.requires_grad)


@dataclass(frozen=True)
class _Held:
    """The slices of `stack` that are zero in its gradient, and their part of the state."""

    stack: ExpertStack
    tasks: Tensor
    value: Tensor
    state: dict[str, Tensor]


def hold_absent(optimizer: Optimizer, absent: Callable[[], Sequence[int]] | None = None) -> None:
    """From now on `optimizer.step()` leaves the experts of absent tasks as they are.

    Where a task's slice of a layer's factors has a gradient of exactly zero, the slice and its
    part of the optimiser's state (momentum, AdamW's moments, Adafactor's rows and columns) are put
    back after the step: whatever has an entry for each task. Call it once for each optimiser that
    trains an `ExpertModel`.

    Looking at the gradients waits for a GPU once a step. `absent`, called before each step, may say
    instead which tasks' samples weren't in its batch, as a sampler knows; their slices are held,
    all others are not looked at.

    An absent task stays where it is under every optimiser of torch but LBFGS, which changes all
    inside of `step` by gradients that are made there. A present task moves as a parameter of its
    own would under SGD, RMSprop, Rprop and Adadelta. Others keep numbers for the whole stack. Adam,
    AdamW, NAdam, RAdam, Adamax and ASGD count its steps, and correct the moments' bias by that
    count: a task that was absent takes, in its first steps, between half and three times the length
    that a count of its own would give; Adagrad's decay goes by that count too. Adafactor also
    limits a step by the whole stack's size.
    """
    held: list[_Held] = []

    def before(*_: object) -> None:
        held[:] = _by_gradient(optimizer) if absent is None else _named(optimizer, absent())

    def after(*_: object) -> None:
        for one in held:
            one.stack.detach()[one.tasks] = one.value
            for name, value in _state(optimizer, one.stack, one.tasks).items():
                # State that this step has made starts from zero, as an untouched parameter's would.
                old = one.state.get(name, torch.zeros_like(value))
                optimizer.state[one.stack][name][one.tasks] = old
        held.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _named(optimizer: Optimizer, absent: Sequence[int]) -> list[_Held]:
    stacks = _stacks(optimizer)
    if not absent or not stacks:
        return []
    # Not waited for: a blocking copy would wait for all that a GPU has still to do.
    tasks = torch.tensor(absent).to(stacks[0].device, non_blocking=True)
    return [_Held(p, tasks, p.detach()[tasks], _state(optimizer, p, tasks)) for p in stacks]


def _stacks(optimizer: Optimizer) -> list[ExpertStack]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if isinstance(p, ExpertStack) and p.grad is not None]


def _by_gradient(optimizer: Optimizer) -> list[_Held]:
    stacks = _stacks(optimizer)
    if not stacks:
        return []
    # One comparison for all layers, so that a GPU is waited for once per step.
    norms = [torch.linalg.vector_norm(p.grad, dim=(1, 2)).float() for p in stacks]
    absent = torch.split((torch.cat(norms) == 0).cpu(), [len(p) for p in stacks])
    held = []
    for stack, mask in zip(stacks, absent, strict=True):
        if mask.any():
            tasks = mask.nonzero().flatten().to(stack.device)
            held.append(_Held(stack, tasks, stack.detach()[tasks], _state(optimizer, stack, tasks)))
    return held


def _state(optimizer: Optimizer, stack: ExpertStack, tasks: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(stack, {})
    return {
        name: value[tasks]
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape[:1] == stack.shape[:1]
    }
