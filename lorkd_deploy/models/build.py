"""Names → modules: torchvision, timm, transformers, OpenCLIP, or a function of the user's own.

Nothing is ever downloaded: weights come from a file or a folder by `load_checkpoint`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import ModelError, UsageError, first_line
from lorkd_deploy.models.function import from_function
from lorkd_deploy.models.open_clip import from_open_clip
from lorkd_deploy.models.pooling import checked_pooling
from lorkd_deploy.models.timm import from_timm
from lorkd_deploy.models.torchvision import from_torchvision
from lorkd_deploy.models.transformers import from_transformers

log = logging.getLogger(__name__)
_FORMS = "torchvision:NAME, timm:NAME, transformers:CLASS, open_clip:NAME or pkg.module:function"


def build(architecture: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A new module `(N, 3, H, W)` → features `(N, F)`, with random weights.

    `torchvision:NAME` and `timm:NAME` come without their last classifier and the dropout before
    it; `transformers:CLASS` and `open_clip:NAME` are networks or towers for images, made by
    `config`, which `read_config` reads (OpenCLIP's own names need none); `pkg.module:function` is
    called without arguments and returns such a module itself. Behind the name of a transformer may
    stand how its tokens are pooled, `:cls`, `:mean` or `:map`.

    Its weights are float32, whatever the function made them. Raises `UsageError` for an unknown
    name (with the nearest ones), `ModelError` if the function fails or gives no module, a package
    isn't installed, or the network can't pool so.
    """
    source, separator, name = architecture.partition(":")
    if not separator or not source or not name:
        raise UsageError(f"{architecture!r} is no architecture", fix=f"write {_FORMS}")
    name, pooling = checked_pooling(source, name)
    if source == "torchvision":
        return from_torchvision(name)
    if source == "timm":
        return from_timm(name, pooling)
    if source == "transformers":
        return from_transformers(name, pooling, config)
    if source == "open_clip":
        return from_open_clip(name, pooling, config)
    return _in_float32(from_function(source, name, _FORMS), architecture)


def _in_float32(module: nn.Module, architecture: str) -> nn.Module:
    tensors = (*module.parameters(), *module.buffers())
    others = {t.dtype for t in tensors if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in others)
        _say_converted(architecture, ", ".join(names))
    return module.float()


@cache  # a network is built several times
def _say_converted(architecture: str, types: str) -> None:
    log.info("%s has weights in %s: they become float32", architecture, types)


def feature_dim(module: nn.Module, size: int) -> int:
    """F of a module `(N, 3, size, size)` → `(N, F)`, found by one forward in eval mode.

    Raises `ModelError` if it fails at this size or gives something else.
    """
    kind = type(module).__name__
    example = next(module.parameters(), torch.empty(0))
    was_training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            images = torch.zeros(2, 3, size, size, dtype=example.dtype, device=example.device)
            features: Any = module(images)
    except ModelError:
        raise
    except Exception as exc:
        raise ModelError(
            f"{kind} can't be run on images of {size} × {size} pixels: {first_line(exc)}",
            fix="choose the image size that the architecture was made for (preprocess.size)",
        ) from exc
    finally:
        for m, training in was_training.items():
            m.training = training
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ModelError(
            f"{kind} gives {got} for two images, wanted features (2, F)",
            fix="pool and flatten at the end of the module; it must have no other outputs",
        )
    return features.shape[1]
