"""One update of the weights: a batch in parts, its gradients scaled back, clipped, and applied."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import TrainingError, is_out_of_memory
from lorkd_deploy.experts import hold_absent
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.autocast import autocast
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.objective import Loss
from lorkd_deploy.training.fitting.sharing import merged_buffers, sum_gradients
from lorkd_deploy.training.processes import ALONE, Processes

log = logging.getLogger(__name__)
_ACCURACY = "accuracy"
_LEAST_SCALE = 2.0**-10  # far below what any training settles at: its gradients are never finite


class Update:
    """The optimiser of one training, and what stands between a batch and its step.

    `objective` maps a batch to its `Loss`; `precision` is what `chosen_precision` says; `parts` how
    many a batch passes in.

    fp16 has no room for small gradients: there the loss is multiplied by a scale that torch's
    `GradScaler` fits to them, and a step whose gradients overflow is left out.
    """

    def __init__(
        self, objective: nn.Module, spec: TrainSpec, precision: str, processes: Processes = ALONE
    ) -> None:
        self._objective = objective
        self._spec = spec
        self._processes = processes
        self._precision = precision
        self.parts = spec.accumulate
        self._device = next(objective.parameters()).device
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self._optimizer = _optimizer(self._parameters, spec)
        self._absent: tuple[int, ...] = ()
        # Which gradients are zero a CPU sees at once; a GPU would be waited for.
        known = self._device.type == "cuda"
        hold_absent(self._optimizer, self._absent_tasks if known else None)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")

    def _absent_tasks(self) -> tuple[int, ...]:
        return self._absent

    def gradients(self, batch: Batch) -> Loss:
        """Forward and backward of the whole batch; returns its mean loss, detached.

        Where it is shared between processes, gradients, buffers and loss are those of all.
        """
        self._optimizer.zero_grad(set_to_none=True)
        self._absent = batch.absent
        means: dict[str, Tensor] = {}
        with merged_buffers(self._objective, self._processes):
            for part in batch.split(self.parts):
                with autocast(self._device, self._precision):
                    loss: Loss = self._objective(part)
                total = loss.total * part.share
                self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
                for name, value in {**loss.parts, _ACCURACY: loss.accuracy}.items():
                    means[name] = means.get(name, 0.0) + value.detach() * part.share
            sum_gradients(self._parameters, self._processes)
        means = self._processes.totals(means)
        return Loss(parts=means, accuracy=means.pop(_ACCURACY))

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
        for parameter, state in self._optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # torch's fused AdamW goes through memory as it lies: a moment in another order
                    # than its channels-last weight would be another weight's.
                    state[key] = torch.empty_like(parameter).copy_(value)
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


def fitting_parts(job: Job, objective: nn.Module, precision: str, batch: Batch, parts: int) -> int:
    """`parts`, doubled until one whole update of `batch` fits; `objective` stays as it was.

    Each try is a forward, backward and step of an optimiser of its own, so that its state is
    counted too. Raises `TrainingError` where not even one image at a time fits. On a CPU a system
    that promises more memory than it has ends the process instead: nothing can be found there.
    """
    images = len(batch.images)
    before = {name: value.detach().clone() for name, value in objective.state_dict().items()}
    while not _fits(job.spec, objective, precision, batch, parts):
        objective.load_state_dict(before)
        if parts >= images:
            raise TrainingError(
                "not even one image at a time fits into memory",
                fix="lower preprocess.size, choose a smaller architecture, or a GPU with more",
            )
        log.info("%d images at a time don't fit into memory", -(-images // parts))
        parts = min(2 * parts, images)
    objective.load_state_dict(before)
    size = -(-images // parts)
    if parts > 1:
        log.warning(
            "batches of %d images pass %d at a time (as %s.accumulate: %d asks for)",
            images, size, job.section, parts,
        )  # fmt: skip
    else:
        log.info("batches of %d images fit into memory", size)
    return parts


def _fits(spec: TrainSpec, objective: nn.Module, precision: str, batch: Batch, parts: int) -> bool:
    objective.train()
    try:
        update = Update(objective, spec, precision)
        update.parts = parts
        update.gradients(batch)
        update.apply(0.0)
    except (MemoryError, RuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        fits = False  # what the failed try held is free once its frames are, below
    else:
        fits = True
    objective.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits
