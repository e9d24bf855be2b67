"""What a training minimises, of teacher and student alike: a network, and its loss on a batch.

L = 1/N Σ_t Σ_{i in t} CE(y_i, p_i) + β · transfer, the latter being a module of `transfer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorkd_deploy.experts import TaskNetwork
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.losses import batch_accuracy, label_loss
from lorkd_deploy.training.networks.network import network_input


@dataclass(frozen=True)
class Loss:
    """The parts of a batch's loss by name (`labels`, `transfer`), and its accuracy to show."""

    parts: dict[str, Tensor]
    accuracy: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, which is minimised."""
        return torch.stack(list(self.parts.values())).sum()


class Objective(nn.Module):
    """`network` and, of a student under a teacher, `transfer`: all that is trained is in it.

    `forward` gives a batch's mean loss. `transfer` maps the batch and the network's outputs to the
    loss that the teacher adds, before it is weighted by the recipe's β. The modules in `frozen` are
    in evaluation mode in training too: their running statistics don't move.
    """

    def __init__(
        self,
        network: TaskNetwork,
        setup: Setup,
        spec: TrainSpec,
        *,
        transfer: nn.Module | None = None,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.transfer = transfer
        self._setup = setup
        self._spec = spec
        self._weights = setup.class_weights(spec, setup.processes.device)
        self._frozen = tuple(frozen)  # a tuple registers nothing

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        x, labels = self.given(batch)
        output = self.network(x, batch.route(x.device))
        parts = {"labels": self.label_loss(output.logits, labels)}
        if self.transfer is not None:
            parts["transfer"] = self._setup.recipe.transfer.beta * self.transfer(batch, output)
        return Loss(parts, batch_accuracy(output.logits, labels, self._setup.kinds))

    def given(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The network's input and each task's labels, on the device."""
        setup, device = self._setup, self._setup.processes.device
        x = network_input(batch.images, setup.preprocess, self.network)
        labels = [torch.from_numpy(part).to(device, non_blocking=True) for part in batch.labels]
        return x, labels

    def label_loss(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """As the recipe has it: smoothing, and weights by class."""
        smoothing = self._spec.label_smoothing
        return label_loss(logits, labels, self._setup.kinds, smoothing, self._weights)
