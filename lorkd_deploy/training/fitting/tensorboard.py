"""Figures of every step for TensorBoard, as an option; the history has those of validations."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorkd_deploy.errors import RuntimeUnavailableError


class Scalars:
    """Event files in `folder`, of steps after the first `done`; None: nothing is written.

    What files there have of later steps is of a training that was killed.
    """

    def __init__(self, folder: Path | None, done: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        if not done:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Raise `RuntimeUnavailableError` where the package is missing: before hours of training."""
    if find_spec("tensorboard") is None:
        raise RuntimeUnavailableError(
            "tensorboard is not installed", fix="python -m pip install 'lorkd-deploy[tensorboard]'"
        )
