"""`open_clip:NAME`: the tower for images of a CLIP, and none of the text's.

NAME is a configuration that OpenCLIP knows, or `local-dir`: the one in the checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lorkd_deploy.errors import ModelError, unknown_name
from lorkd_deploy.models.folder import LOCAL_DIR, OPEN_CLIP_CONFIG, FolderNetwork
from lorkd_deploy.models.pooling import cannot_pool
from lorkd_deploy.models.timm import pool_by

VISUAL = "visual."  # what the names of the tower's tensors begin with
_TOKENS = {"cls": "tok", "mean": "avg"}  # OpenCLIP's words for it
# The package builds both towers at once: a text tower as small as can be, which is dropped.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
_SWITCHED_OFF = {"timm_model_pretrained": False, "output_tokens": False}


class OpenClipNetwork(FolderNetwork):
    """`visual` under the name that it has in checkpoints; its output is the tower's."""

    def __init__(self, visual: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual = visual
        self.config = dict(config)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, S, S)` → `(N, F)`."""
        features: Tensor = self.visual(images)
        return features


def from_open_clip(
    name: str, pooling: str | None, config: Mapping[str, Any] | None
) -> OpenClipNetwork:
    """A tower with its projection or, where a pooling is named, the features before that.

    Raises `UsageError` for an unknown name, `ModelError` where the package is missing, `config`
    isn't one of OpenCLIP, or the tower can't pool so.
    """
    try:
        package = import_module("open_clip")
    except ImportError as exc:
        raise ModelError(
            "OpenCLIP is not installed", fix="pip install 'lorkd-deploy[foundation]'"
        ) from exc
    where = f"open_clip:{name}"
    if name != LOCAL_DIR:
        if name not in package.list_models():
            raise unknown_name("OpenCLIP architecture", name, [LOCAL_DIR, *package.list_models()])
        config = package.get_model_config(name)
    if config is None:
        raise ModelError(f"{where} has no {OPEN_CLIP_CONFIG} to be built by")
    known = config.get("model_cfg", config)
    try:
        visual = package.CLIP(
            known["embed_dim"],
            known["vision_cfg"] | _SWITCHED_OFF,
            _NO_TEXT,
            quick_gelu=known.get("quick_gelu", False),
        ).visual
    except Exception as exc:  # a key that is missing or unknown, sizes that can't be
        raise ModelError(
            f"OpenCLIP can't build the tower of this configuration: {type(exc).__name__}: {exc}",
            where=where,
            fix="check that vision_cfg is whole, and that the package is as new as the model",
        ) from exc
    if pooling is not None:
        _pool_by(visual, pooling, where)
    return OpenClipNetwork(visual, config)


def _pool_by(visual: Any, pooling: str, where: str) -> None:
    if hasattr(visual, "trunk"):  # a network of timm, with the projection behind it
        pool_by(visual.trunk, pooling, where)
        visual.head = nn.Identity()
        return
    if not hasattr(visual, "pool_type"):
        raise cannot_pool(where, pooling, "it is no transformer")
    attention = visual.attn_pool is not None
    if attention != (pooling == "map"):
        has = "an attention pooling" if attention else "no attention pooling"
        raise cannot_pool(where, pooling, f"it has {has}")
    if not attention:
        visual.pool_type = _TOKENS[pooling]
    visual.proj = None
