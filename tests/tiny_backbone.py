"""A user's own architecture, `tiny_backbone:backbone`: quick to train and to export."""

from __future__ import annotations

import os
import time
from itertools import count

from torch import Tensor, nn


def backbone() -> nn.Module:
    """Images `(N, 3, S, S)` → features `(N, 16)`: a 3 × 3, a depthwise and a 1 × 1 convolution.

    With `TINY_HOLD=N` it stops for ten minutes once it has trained N steps, in the process whose
    rank is `TINY_HOLD_RANK` (0): so that a test has the time to kill it there.
    """
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    rank = os.environ.get("TINY_HOLD_RANK", "0")
    if "TINY_HOLD" in os.environ and os.environ.get("RANK", "0") == rank:
        _hold_after(int(os.environ["TINY_HOLD"]), made)
    return made


def _hold_after(steps: int, module: nn.Module) -> None:
    done = count()

    def wait(module: nn.Module, _: object) -> None:
        if module.training and next(done) == steps:
            time.sleep(600)

    module.register_forward_pre_hook(wait)


def forgetful() -> nn.Module:
    """`backbone` whose steps draw random numbers."""
    return nn.Sequential(backbone(), nn.Dropout(0.3))


class _Attention(nn.Module):
    """Its projection is no layer that a forward calls: torch reads that weight directly."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens)[0]
        return mixed.mean(1)


def attention() -> nn.Module:
    """Images `(N, 3, S, S)` → features `(N, 8)`, by torch's own attention."""
    return _Attention()


def transformer() -> nn.Module:
    """Images `(N, 3, 32, 32)` → features `(N, 24)`: a ViT of timm's, two blocks, no convolution's
    norm to fold, and tensors that are no layer's (class token, positions).
    """
    import timm

    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=2, embed_dim=24
    )
    return made


def pools_the_largest() -> nn.Module:
    """Images `(N, 3, S, S)` → features `(N, 36)`, by an operation that ONNX doesn't have."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(3), nn.Flatten())


def batch_statistics() -> nn.Module:
    """`backbone` whose answers depend on the images beside an image."""
    return nn.Sequential(backbone(), nn.BatchNorm1d(16, track_running_stats=False))


def blind() -> nn.Module:
    """Images `(N, 3, S, S)` → zeros `(N, 16)`, whatever they show."""
    return nn.Sequential(backbone(), nn.Threshold(1e9, 0.0))


def without_batch_statistics() -> nn.Module:
    """Images `(N, 3, S, S)` → features `(N, 8)`, each sample by itself."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(8),
    )
