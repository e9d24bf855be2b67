"""Networks of kinds that users bring: images `(N, 3, 16, 16)` → features `(N, F)`, seconds each."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def _layer(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _FlattensByView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(3, 8), _layer(8, 16))
        self.last = nn.Linear(16 * 4 * 4, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        features: Tensor = self.last(y.view(y.size(0), -1))
        return features


def flattens_by_view() -> nn.Module:
    """It works on contiguous memory alone."""
    return _FlattensByView()


def pools() -> nn.Module:
    """Nothing is odd in it."""
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(_layer(3, 8), _layer(8, 16), *pooled)


class _HasScalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = pools()
        self.mixing = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.gate = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        y = y + self.gate * self.mixing(y)
        features: Tensor = self.layers[1:](y) * self.scale.exp() + self.shift
        return features


def has_scalars() -> nn.Module:
    """Tensors without dimensions: a logit scale, a ReZero gate, a buffer."""
    return _HasScalars()


def in_half() -> nn.Module:
    """Its weights are float16, and one layer's float64."""
    made = pools().half()
    made[1].double()
    return made


def computes_weights() -> nn.Module:
    """By torch's weight_norm and spectral_norm of old, which keep the last one as an attribute."""
    made = pools()
    layers = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layers[0])
    nn.utils.spectral_norm(layers[1])
    made.insert(2, nn.Conv2d(16, 16, 1))  # has an expert
    return made


class _Recomputes(nn.Module):
    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.last = _layer(3, 8), nn.Conv2d(8, 16, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.use_reentrant is None:
            y = self.middle(y)
        else:
            y = checkpoint(self.middle, y, use_reentrant=self.use_reentrant)
        features: Tensor = self.last(y).mean((2, 3))
        return features


def recomputes(use_reentrant: bool | None = False) -> nn.Module:
    """Activation checkpointing, in one of torch's two ways; None: without it."""
    return _Recomputes(use_reentrant)


class _HasLeftovers(nn.Module):
    """What refactoring leaves in a network, and names that say nothing of what is used."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor([0.4, 0.5, 0.6]))
        self.old_norm, self.old_layer = nn.BatchNorm2d(16), nn.Conv2d(8, 16, 1)
        self.old_tokens = nn.Parameter(torch.randn(1, 4))
        self.layers = nn.Sequential(_layer(3, 8), _layer(8, 16))
        self.mixing = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.again = self.mixing
        self.first = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.mixing(self.layers(x)))
        self.old_layer(y[:, :8])  # computed in vain
        y = self.second(torch.relu(self.first(y))).mean((2, 3))
        features: Tensor = self.head(y.reshape(len(x), -1))
        return features


def has_leftovers() -> nn.Module:
    """Tensors without a use, a layer with two names, two layers with one weight, its own head."""
    return _HasLeftovers()
