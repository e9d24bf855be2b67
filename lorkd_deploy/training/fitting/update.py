"""One update of the weights: a batch in parts, its gradients scaled back, clipped, and applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.experts import hold_absent
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.autocast import autocast
from lorkd_deploy.training.fitting.processes import ALONE, Processes

_LEAST_SCALE = 2.0**-10  # far below what any training settles at: its gradients are never finite


@dataclass(frozen=True)
class Loss:
    """The parts of one batch's loss by name (`labels`, `transfer`), and its accuracy to show."""

    parts: dict[str, Tensor]
    accuracy: float


Objective = Callable[[Batch], Loss]


class Update:
    """The optimiser of one training, and what stands between a batch and its step.

    `precision` is what `chosen_precision` says; `parts` how many a batch passes in.

    fp16 has no room for small gradients: there the loss is multiplied by a scale that torch's
    `GradScaler` fits to them, and a step whose gradients overflow is left out.
    """

    def __init__(
        self, model: nn.Module, spec: TrainSpec, precision: str, processes: Processes = ALONE
    ) -> None:
        self._model = model
        self._spec = spec
        self._processes = processes
        self._precision = precision
        self.parts = spec.accumulate
        self._device = next(model.parameters()).device
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = _optimizer(self._parameters, spec)
        hold_absent(self._optimizer)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")

    def gradients(self, batch: Batch, objective: Objective) -> Loss:
        """Forward and backward of the whole batch; returns its mean loss, detached.

        Where it is shared between processes, gradients, buffers and loss are those of all.
        """
        buffers = self._processes.buffers(self._model)
        self._optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        accuracy = 0.0
        for part in batch.split(self.parts):
            with autocast(self._device, self._precision):
                result = objective(part)
            loss = torch.stack(list(result.parts.values())).sum() * part.share
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            accuracy += part.share * result.accuracy
            for name, value in result.parts.items():
                total[name] = total.get(name, 0.0) + value.detach() * part.share
        self._processes.sum_gradients(self._parameters)
        self._processes.merge_buffers(self._model, buffers)
        accuracy, total = self._processes.total(accuracy, total)
        return Loss(total, accuracy)

    def apply(self, lr: float) -> None:
        """Step with these gradients; raises `TrainingError` where fp16 can't hold them at all."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._spec.clip is not None:
            self.scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._spec.clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_SCALE:
            raise TrainingError(
                "the gradients are not finite in fp16, however small the loss is scaled",
                fix="set precision to bf16 or fp32, or lower the learning rate",
            )

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state as `INDEX/NAME`."""
        return {
            f"{index}/{name}": value
            for index, state in self._optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Go on from `tensors()` and the scaler's `state_dict()`."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split("/")
            states.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})
        if scaler:
            self.scaler.load_state_dict(scaler)


def _optimizer(parameters: list[nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    if spec.optimizer == "adamw":
        # Fused: experts are many small tensors, and torch's loop over them costs more than their
        # arithmetic (ShuffleNetV2 0.5, four experts: 20 ms a step, fused 4 ms).
        return torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    # torch's fused SGD can't begin with gradients of some parameters only: a task may be absent.
    # `foreach` gives the same bits as the loop in half the time.
    return torch.optim.SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        foreach=True,
    )
