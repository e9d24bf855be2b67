"""A net of every kind of layer with three experts, and a mixed batch for it."""

from __future__ import annotations

import torch
from torch import nn

from lorkd_deploy.experts import add_experts


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.point(self.mix(self.bn(self.conv(x)).relu())))
        return self.fc(self.drop(x.mean((2, 3))))


def student(norm="shared", **kw):
    torch.manual_seed(0)
    model = add_experts(Net(), 3, rank=2, alpha=5, norm=norm, **kw)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor.data, 0.5, 2)
        elif tensor.is_floating_point() and (tensor.dim() == 1 or name.endswith(".B")):
            nn.init.normal_(tensor.data, std=0.5)
    return model


X = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([2, 0, 1, 2, 2, 0, 2])
