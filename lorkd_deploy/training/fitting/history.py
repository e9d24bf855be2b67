"""What a training did, written from its start on: one that was stopped has its history too."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import write_atomic
from lorkd_deploy.training.ranks.shrinking import CompressedTask

log = logging.getLogger(__name__)
STARVED = 0.05  # of a training's time, from which its waiting for data is worth a warning
START = 5.0  # s that the first batches may take


@dataclass
class Fitted:
    """A training up to its step `steps`, whose state the model holds.

    `history` has each validation's step, losses and scores; `seconds` are those of training,
    `waiting` those of them in which the step had no batch.
    """

    steps: int
    history: list[dict[str, Any]]
    seconds: float
    waiting: float
    precision: str = "fp32"
    notes: dict[str, Any] = field(default_factory=dict)  # further facts for the history
    truncated: tuple[CompressedTask, ...] = ()

    @property
    def waited(self) -> float:
        """The part of its time in which it waited for data, 0 to 1."""
        return self.waiting / max(self.seconds, self.waiting, 1e-9)


def write_history(path: Path, fitted: Fitted, device: torch.device, *, finished: bool) -> None:
    """Write `RUN/history/FOLDER.json`; `finished`: the folder holds what came of the training.

    Then the log says how much of its time it waited for data, and warns where that is too much.
    """
    history = {
        **fitted.notes,
        "finished": finished,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "waiting_for_data": round(fitted.waited, 4),
        "device": device.type,
        "precision": fitted.precision,
        "threads": torch.get_num_threads(),
        "validations": fitted.history,
    }
    if fitted.truncated:
        history["truncated"] = [task.model_dump(mode="json") for task in fitted.truncated]
    write_atomic(path, document_bytes(history))
    if finished and fitted.steps:
        _log_waiting(fitted)


def _log_waiting(fitted: Fitted) -> None:
    percent = 100 * fitted.waited
    if fitted.waited > STARVED and fitted.waiting > START:
        log.warning(
            "the training waited for data for %.0f %% of its time: store the images at about the "
            "network's size, give it more CPUs, or lighten train.augment",
            percent,
        )
    else:
        log.debug("waited for data for %.1f %% of the time", percent)
