"""The pooled outputs of a network's last stages, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Staged(NamedTuple):
    """What `StagedNetwork` gives: features `(N, F)`, and of each stage `(N, C)`."""

    features: Tensor
    stages: tuple[Tensor, ...]


class StagedNetwork(nn.Module):
    """`module`, of which a forward also gives the last stages' outputs, averaged over the image.

    A stage is what gives images `(N, C, H, W)` with a width of its own: a child of the module, or
    of a sequence of sequences in it (`blocks` of timm's networks). Of neighbours of equal width the
    last counts. A network without any, such as a transformer, has its features as its one stage.
    `widths` are the stages' C.
    """

    def __init__(self, module: nn.Module, size: int, *, last: int = 3) -> None:
        super().__init__()
        self.module = module
        self._names: tuple[str, ...] = ()
        images = {n: out for n, out in self._watched(size).items() if out.dim() == 4}
        names, widths = list(images), [out.shape[1] for out in images.values()]
        ends = [i for i, width in enumerate(widths) if widths[i + 1 : i + 2] != [width]]
        self._names = tuple(names[i] for i in ends[-last:])
        self.widths = tuple(widths[i] for i in ends[-last:])
        if not self._names:
            with torch.no_grad():
                self.widths = (self._probe(size).shape[1],)

    def forward(self, x: Tensor) -> Staged:
        seen: dict[str, Tensor] = {}
        handles = [
            self.module.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: seen.update({name: output})
            )
            for name in self._names
        ]
        try:
            features = self.module(x)
        finally:
            for handle in handles:
                handle.remove()
        pooled = tuple(seen[name].mean(dim=(2, 3)) for name in self._names)
        return Staged(features, pooled or (features,))

    def _watched(self, size: int) -> dict[str, Tensor]:
        """What every candidate gives for an empty image, in the order in which they are called."""
        seen: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: (
                    seen.update({name: output}) if isinstance(output, Tensor) else None
                )
            )
            for name, module in _candidates(self.module, "")
        ]
        try:
            self._probe(size)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    @torch.no_grad()
    def _probe(self, size: int) -> Tensor:
        training = {m: m.training for m in self.module.modules()}
        parameter = next(self.module.parameters())
        features: Tensor = self.module.eval()(parameter.new_zeros(2, 3, size, size))
        for module, mode in training.items():
            module.training = mode
        return features


def _candidates(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        nested = [c for c in child.children() if isinstance(c, nn.Sequential)]
        if isinstance(child, nn.Sequential) and len(nested) == len(child) > 0:
            yield from _candidates(child, f"{path}{name}.")
        else:
            yield path + name, child
