"""Backbone and head as one module, as it is deployed, and what a guard sees of an image in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Answered(NamedTuple):
    """Logits `(N, K)` and the guard's features `(N, E)`: see `safety/guard.py`."""

    logits: Tensor
    features: Tensor


class Deployable(nn.Module):
    """`(N, 3, S, S)` → logits `(N, K)`."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor | Answered:
        logits: Tensor = self.head(self.backbone(x))
        return logits


class Guarded(Deployable):
    """The same, and beside the logits what its guard looks at.

    That is the mean and the deviation of each channel in front of the second convolution that is
    called (behind the first where it is the only one, of the image itself where there is none):
    what the first layer gives, with its activation and pooling.
    """

    def forward(self, x: Tensor) -> Answered:
        early: list[Tensor] = [x]

        def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if len(early) < 3:
                early.append(given[0])

        def behind(_: nn.Module, __: object, result: Tensor) -> None:
            if len(early) == 2:
                early[0] = result

        convolutions = [m for m in self.backbone.modules() if isinstance(m, nn.Conv2d)]
        hooks = [m.register_forward_pre_hook(before) for m in convolutions]
        hooks += [m.register_forward_hook(behind) for m in convolutions]
        try:
            logits = self.head(self.backbone(x))
        finally:
            for hook in hooks:
                hook.remove()
        seen = early[2] if len(early) == 3 else early[0]
        means = seen.mean((2, 3), keepdim=True)
        deviations = (seen - means).square().mean((2, 3)).sqrt()
        return Answered(logits, torch.cat([means.flatten(1), deviations], dim=1))
