"""Losses of the steps that were taken, read from a GPU every so many steps instead of at each.

Reading a number waits until the GPU has done all that was asked of it, and meanwhile it is asked
for nothing new. So losses are kept there, and a loss that isn't finite is found a few steps later,
with the step it came from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from lorkd_deploy.training.fitting.objective import Loss

EVERY = {"cuda": 20}  # steps between two readings, by the kind of device


class Seen(NamedTuple):
    """A step's losses by name, its accuracy and learning rate."""

    step: int
    parts: dict[str, float]
    accuracy: float
    lr: float
    finite: bool


class Watch:
    """Steps whose losses wait to be read on `device`; on a CPU none ever waits."""

    def __init__(self, device: torch.device) -> None:
        self._every = EVERY.get(device.type, 1)
        self._waiting: list[tuple[int, Loss, float]] = []

    def add(self, step: int, loss: Loss, lr: float) -> list[Seen]:
        """Those that are read now, if it is time to."""
        self._waiting.append((step, loss, lr))
        return self.read() if len(self._waiting) >= self._every else []

    def read(self) -> list[Seen]:
        """All that wait, in their order."""
        if not self._waiting:
            return []
        rows = [
            torch.stack([v.double() for v in (loss.total, loss.accuracy, *loss.parts.values())])
            for _, loss, _ in self._waiting
        ]
        seen = [
            Seen(
                step, dict(zip(loss.parts, parts, strict=True)), accuracy, lr, math.isfinite(total)
            )
            for (step, loss, lr), (total, accuracy, *parts) in zip(
                self._waiting, torch.stack(rows).tolist(), strict=True
            )
        ]
        self._waiting.clear()
        return seen
