"""What a module's forward uses, and under which names it keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

COUNTER = "num_batches_tracked"


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` without the second names of modules that are registered twice.

    Without counters of batches too: no answer depends on them.
    """
    first = {part: name for name, part in module.named_modules()}
    everywhere = module.named_modules(remove_duplicate=False)
    second = tuple(f"{name}." for name, part in everywhere if first[part] != name)
    state = module.state_dict()
    return {n: v for n, v in state.items() if not n.startswith(second) and not n.endswith(COUNTER)}


def never_used(module: nn.Module, example: Tensor) -> set[nn.Module]:
    """Modules with tensors of their own that a forward on `example` neither calls nor reads.

    It is run once in evaluation mode.
    """
    called: set[nn.Module] = set()
    handles = [
        part.register_forward_pre_hook(lambda part, _: called.add(part))
        for part in module.modules()
    ]
    reads = _Reads()
    try:
        with evaluated(module), torch.no_grad(), reads:
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return {
        part
        for part in module.modules()
        if part not in called and (own := _own_tensors(part)) and not reads.of(own)
    }


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode; each part is as it was afterwards."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, was in training.items():
            part.training = was


def _own_tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(recurse=False), *part.buffers(recurse=False)]


class _Reads(TorchFunctionMode):  # a dispatch mode would import torch's compiler: seconds
    """Remembers the memory that operations read, whatever view of it they are given."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: set[int] = set()

    def of(self, tensors: list[Tensor]) -> bool:
        """Whether any of `tensors` was read."""
        return any(t.untyped_storage().data_ptr() in self._memory for t in tensors)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._memory.add(leaf.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))
