"""Figures of every step for TensorBoard, as an option; the history has those of validations."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from lorkd_deploy.errors import RuntimeUnavailableError


class Scalars(Protocol):
    """Figures by name and step; `close` at the end."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class NoScalars:
    """The default: keeps nothing."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`; what they have of steps after `done` is of a killed training."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not done:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_scalars(folder: Path | None, done: int) -> Scalars:
    """TensorBoard's files in `folder` for the steps after the first `done`; None: none."""
    return NoScalars() if folder is None else TensorBoard(folder, done)


def check_tensorboard() -> None:
    """Raise `RuntimeUnavailableError` where the package is missing: before hours of training."""
    if find_spec("tensorboard") is None:
        raise RuntimeUnavailableError(
            "tensorboard is not installed", fix="python -m pip install 'lorkd-deploy[tensorboard]'"
        )
