"""`timm:NAME`: any network of timm without its classifier."""

from __future__ import annotations

from typing import Any

from torch import nn

from lorkd_deploy.errors import ModelError, first_line, unknown_name
from lorkd_deploy.models.pooling import cannot_pool

_POOLS = {"cls": "token", "mean": "avg", "map": "map"}  # timm's words for it


def from_timm(name: str, pooling: str | None) -> nn.Module:
    """Raises `UsageError` for an unknown name, `ModelError` where it can't pool so."""
    try:
        import timm
    except ImportError as exc:
        raise ModelError("timm is not installed", fix="pip install 'lorkd-deploy[train]'") from exc
    if not timm.is_model(name):
        raise unknown_name("timm architecture", name, timm.list_models())
    module = timm.create_model(name, pretrained=False, num_classes=0)
    if pooling is not None:
        pool_by(module, pooling, f"timm:{name}")
    return module


def pool_by(module: Any, pooling: str, where: str) -> None:
    """Let a network of timm pool by another way, behind the norm that it has.

    Raises `ModelError` for a class token or an attention pooling that the network hasn't.
    """
    if pooling == "cls" and not getattr(module, "num_prefix_tokens", 0):
        raise cannot_pool(where, pooling, "it has no class token")
    try:
        module.reset_classifier(0, _POOLS[pooling])
    except Exception as exc:  # an assertion, or what a kind of network raises for an unknown word
        raise cannot_pool(where, pooling, first_line(exc)) from exc
