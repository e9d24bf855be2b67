"""Grad-CAM by its general formula, in torch: what the engines' maps are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lorkd_deploy.arrays import F32, F64, U8
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts.uses import evaluated
from lorkd_deploy.metrics.score import Kind, probabilities
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.safety.explanation import faithfulness
from lorkd_deploy.training.networks.network import network_input

_POOLINGS = ("adaptive_avg_pool2d", "avg_pool2d", "mean")
NO_MAPS = "leave maps out (safety.explain: false), or choose a network that ends in a pooling"
_MAPPED = 8  # images at a time: the whole forward is kept for them
_EVEN = 1e-4  # of the largest gradient: float32 gives a little more than nothing


class _LastPooling(TorchFunctionMode):
    """Keeps what the last global average pooling of a forward was given."""

    given: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        whole = args[0] if args else None
        if (
            getattr(func, "__name__", "") in _POOLINGS
            and isinstance(whole, Tensor)
            and whole.dim() == 4
            and isinstance(result, Tensor)
            and result.shape[:2] == whole.shape[:2]
            and result.shape[2:].numel() == 1
        ):
            self.given = whole
        return result


def grad_cam(backbone: nn.Module, head: nn.Linear, x: Tensor) -> Tensor:
    """Maps `(N, K, h, w)` of network inputs `(N, 3, S, S)`, with their sign.

    Of each class the feature map before the last global average pooling, its channels weighted by
    the mean gradient of the class's logit and summed. Raises `ModelError` for a network without
    such a pooling, or whose answer depends on that feature map by another way too.
    """
    with evaluated(backbone), torch.enable_grad(), _LastPooling() as pooling:
        logits = head(backbone(x.detach().requires_grad_()))
    features = pooling.given
    if features is None or not features.requires_grad:
        raise _none(backbone, "it has no global average pooling")
    maps = []
    for column in logits.unbind(1):
        (gradient,) = torch.autograd.grad(column.sum(), features, retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        if (gradient - weights).abs().max() > _EVEN * gradient.abs().max():
            raise _none(backbone, "it looks at the last feature map by other ways than its mean")
        maps.append((weights * features).sum(1))
    return torch.stack(maps, dim=1).detach()


class Explained:
    """A task's network `head(backbone(x))`, asked where it looks."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocess: Preprocess) -> None:
        self.backbone, self.head, self.preprocess = backbone, head, preprocess

    def maps(self, images: U8) -> F32:
        """Maps float32 `(n, K, h, w)` of images `(n, S, S, 3)`, n ≥ 1."""
        parts = [
            grad_cam(self.backbone, self.head, self._input(images[start : start + _MAPPED]))
            for start in range(0, len(images), _MAPPED)
        ]
        return np.asarray(torch.cat(parts).float().cpu().numpy(), np.float32)

    def faithful(self, images: U8, maps: F32, logits: F32, kind: Kind) -> F32:
        """Deletion and insertion `(n, 2)` of each image's most probable class by its map."""
        found = []
        for image, of_classes, row in zip(images, maps, logits, strict=True):
            place = int(row.argmax())

            def answer(parts: U8, column: int = place) -> F64:
                return probabilities(self.logits(parts), kind)[:, column]

            found.append(faithfulness(image, of_classes[place], answer))
        return np.array(found, np.float32)

    @torch.no_grad()
    def logits(self, images: U8) -> F32:
        """Logits `(n, K)` of images `(n, S, S, 3)`, in one forward."""
        with evaluated(self.backbone):
            return np.asarray(self.head(self.backbone(self._input(images))).numpy(), np.float32)

    def _input(self, images: U8) -> Tensor:
        return network_input(images, self.preprocess, self.backbone)


def _none(backbone: nn.Module, why: str) -> ModelError:
    return ModelError(f"{type(backbone).__name__} has no class activation map: {why}", fix=NO_MAPS)
