"""ShuffleNetV2 0.25×: the small network beside a 0.5× one; torchvision has none so narrow."""

from __future__ import annotations

from torch import nn


def shufflenet_v2_x0_25() -> nn.Module:
    """`(N, 3, H, W)` → `(N, 512)`: half the stages' and the last layer's widths of 0.5×.

    The first layer keeps its 24 channels, as in all of torchvision's widths.
    """
    from torchvision.models import ShuffleNetV2  # type: ignore[import-untyped,unused-ignore]

    network: nn.Module = ShuffleNetV2([4, 8, 4], [24, 24, 48, 96, 512])
    network.fc = nn.Identity()
    return network
