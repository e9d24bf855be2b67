"""Networks with a head per task: the teacher as one, what all of them take, and where they lie."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lorkd_deploy.arrays import U8
from lorkd_deploy.errors import first_line, is_out_of_memory
from lorkd_deploy.experts import Outputs, Route, TaskHeads, TaskNetwork
from lorkd_deploy.experts.uses import COUNTER
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.storage import sha256_bytes, tensor_bytes

log = logging.getLogger(__name__)
_LAST = torch.channels_last


class TeacherNetwork(TaskNetwork):
    """`backbone` maps `(N, 3, H, W)` to `(N, features)`; the heads are those of a student."""

    def __init__(self, backbone: nn.Module, features: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = TaskHeads(features, classes)
        self.features = features

    def forward(self, x: Tensor, task: Tensor | int | Route) -> Outputs:
        """Features and each task's logits; see `TaskHeads` for their form."""
        features = self.backbone(x)
        return Outputs(features, self.heads(features, task))

    def dense(self, task: int) -> tuple[nn.Module, nn.Linear]:
        """The backbone and the task's head themselves, which are plain already."""
        return self.backbone, self.heads.head(task)


def weights_sha256(module: nn.Module) -> str:
    """Of the names and values of all that `module` computes with."""
    state = {
        name: value.cpu().numpy()
        for name, value in module.state_dict().items()
        if not name.endswith(COUNTER)
    }
    return sha256_bytes(tensor_bytes(state))


def network_input(images: U8 | Tensor, preprocess: Preprocess, network: nn.Module) -> Tensor:
    """uint8 `(N, S, S, 3)` → normalised float32 `(N, 3, S, S)`, where `network` is and in the order
    of memory of its weights.

    The bytes go there as they are, to a GPU without waiting for it, and become numbers there: the
    same ones as by `Preprocess.normalise`.
    """
    device = next(network.parameters()).device
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.require(images, requirements=("C", "W")))
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()
    count, side = images.shape[:2]
    lines = images.to(device, non_blocking=True).view(count, side, -1).float()
    for each, change in zip(preprocess.scale_and_shift, (lines.mul_, lines.sub_), strict=True):
        # A whole line of pixels at a time: three numbers would be too few to compute at once.
        change(torch.from_numpy(each).repeat(side).to(device, non_blocking=True))
    x = lines.view(count, side, side, 3).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=memory_order(network))


def place(network: TaskNetwork, device: torch.device, *, channels_last: bool, size: int) -> None:
    """Move `network` to `device`, its convolutions' weights in channels-last order if asked.

    Code such as `x.view(len(x), -1)` works on contiguous memory alone. A trial on images of `size`
    pixels shows it: there the weights are contiguous, whatever is asked.
    """
    _order(network, device, torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last and (fault := _fault_on_trial(network, size)):
        _order(network, device, torch.contiguous_format)
        log.info("the network needs contiguous memory, so channels_last is left out: %s", fault)


def memory_order(network: nn.Module) -> torch.memory_format:
    """That of the network's convolutions, and so of its inputs."""
    last = any(
        p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=_LAST)
        for p in network.parameters()
    )
    return _LAST if last else torch.contiguous_format


def _order(network: nn.Module, device: torch.device, order: torch.memory_format) -> None:
    network.to(device, memory_format=order)  # type: ignore[call-overload]


@torch.no_grad()
def _fault_on_trial(network: TaskNetwork, size: int) -> str | None:
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        network(torch.zeros(2, 3, size, size, device=device).to(memory_format=_LAST), 0)
    except RuntimeError as exc:  # torch's own; the network's faults on any memory are known by now
        if is_out_of_memory(exc):
            raise
        return first_line(exc)
    finally:
        network.train(was_training)
    return None
