"""`torchvision:NAME`: its classifiers without their last layer."""

from __future__ import annotations

from torch import nn

from lorkd_deploy.errors import unknown_name

_IMAGENET_CLASSES = 1000  # what every torchvision classifier is built with


def from_torchvision(name: str) -> nn.Module:
    """Without its last classifier and the dropout before it; raises `UsageError`."""
    from torchvision import models  # type: ignore[import-untyped,unused-ignore]

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision architecture", name, known)
    # Auxiliary classifiers give tuples; these two's own initialisation takes scipy half a minute.
    inception = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": False} if inception else {}
    module: nn.Module = models.get_model(name, weights=None, **extra)
    _remove_classifier(module)
    return module


def _remove_classifier(module: nn.Module) -> None:
    sized = {
        path: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    last = [path for path, width in sized.items() if width == _IMAGENET_CLASSES][-1]
    parent = module.get_submodule(last.rpartition(".")[0])
    siblings = [name for name, _ in parent.named_children()]
    place = siblings.index(last.rpartition(".")[2])
    setattr(parent, siblings[place], nn.Identity())
    if place and isinstance(getattr(parent, siblings[place - 1]), nn.Dropout):
        setattr(parent, siblings[place - 1], nn.Identity())
