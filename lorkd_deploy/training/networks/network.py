"""Networks with a head per task: the teacher as one, what all of them take, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorkd_deploy.experts import Outputs, Route, TaskHeads, TaskNetwork
from lorkd_deploy.preprocess import U8, Preprocess
from lorkd_deploy.storage import sha256_bytes, tensor_bytes


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


def weights_sha256(module: nn.Module) -> str:
    """Of the names and values of all that `module` computes with."""
    state = {
        name: value.cpu().numpy()
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return sha256_bytes(tensor_bytes(state))


def network_input(
    images: U8, preprocess: Preprocess, device: torch.device, *, channels_last: bool = True
) -> torch.Tensor:
    """uint8 `(N, S, S, 3)` → normalised float32 `(N, 3, S, S)` on `device`."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(preprocess.normalise(images)).to(device, memory_format=order)


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Move `model` to `device`, its convolutions' weights in the asked order of memory."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    model.to(device, memory_format=order)  # type: ignore[call-overload]
