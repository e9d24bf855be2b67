"""`transformers:CLASS`: a network for images of Hugging Face's library, from a local folder.

The class is the library's own. Code that comes with a model is never run, nothing is fetched, and
only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorkd_deploy.errors import ModelError, UsageError, first_line, unknown_name
from lorkd_deploy.models.folder import FolderNetwork
from lorkd_deploy.models.pooling import cannot_pool
from lorkd_deploy.weight_files import is_finite

_MODEL = "model."  # what the names of this module's tensors begin with
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class TransformersNetwork(FolderNetwork):
    """`model` and how its tokens are pooled; without a pooling, by the model itself."""

    def __init__(self, model: Any, pooling: str | None, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.config = dict(config)
        self._where = f"transformers:{type(model).__name__}"
        modules = {type(module).__name__ for module in model.modules()}
        self._attends = any("AttentionPoolingHead" in name for name in modules)
        # CLIP's last norm is behind its class token alone.
        self._norms_token = hasattr(model, "post_layernorm") and not self._attends
        if pooling in {"cls", "mean"} and hasattr(model, "pooler"):
            model.pooler = None  # a layer that checkpoints often lack, and nothing here uses

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, S, S)` → `(N, F)`; raises `ModelError` where the network can't pool so."""
        out = self.model(pixel_values=images, return_dict=True)
        own: Tensor | None = getattr(out, "pooler_output", None)
        if self.pooling is None or self.pooling == "map":
            if own is None or (self.pooling == "map" and not self._attends):
                raise self._cannot("it has no attention pooling" if self.pooling else "it has none")
            return own.flatten(1)
        tokens: Tensor = out.last_hidden_state
        if tokens.dim() == 4:  # the planes of a convolutional network
            if self.pooling == "cls":
                raise self._cannot("it has no class token")
            return tokens.mean((2, 3))
        before = tokens.shape[1] - self._patches(images)  # the class token and registers
        if self.pooling == "mean":
            return tokens[:, max(before, 0) :].mean(1)
        if before < 1:
            raise self._cannot("it has no class token")
        return own if self._norms_token and own is not None else tokens[:, 0]

    def _patches(self, images: Tensor) -> int:
        side = getattr(self.model.config, "patch_size", None)
        if side is None:
            raise self._cannot("its configuration doesn't say the patch_size")
        height, width = (side, side) if isinstance(side, int) else side
        return (images.shape[2] // int(height)) * (images.shape[3] // int(width))

    def _cannot(self, why: str) -> ModelError:
        return cannot_pool(self._where, self.pooling or "itself", why)


def from_transformers(
    name: str, pooling: str | None, config: Mapping[str, Any] | None
) -> TransformersNetwork:
    """The network that `config`, a model's config.json, describes, with random weights.

    Raises `UsageError` for a class that doesn't exist or isn't one for images, `ModelError` where
    the package is missing or `config` is that of another class.
    """
    kind = _class(name)
    where = f"transformers:{name}"
    if config is None:
        raise ModelError(f"{where} has no config.json to be built by")
    try:
        model = kind(kind.config_class.from_dict(_own(dict(config), kind, where)))
    except ModelError:
        raise
    except Exception as exc:  # sizes that can't be, a package that the network needs
        raise ModelError(
            f"the network can't be built: {type(exc).__name__}: {exc}",
            where=where,
            fix="check that config.json is whole, and that the package is as new as the model",
        ) from exc
    return TransformersNetwork(model, pooling, config)


def _class(name: str) -> Any:
    try:
        package = import_module("transformers")
    except ImportError as exc:
        raise ModelError(
            "transformers is not installed", fix="pip install 'lorkd-deploy[foundation]'"
        ) from exc
    package.logging.set_verbosity_error()  # what a checkpoint lacks is said here, in our words
    package.logging.disable_progress_bar()
    kind: Any = getattr(package, name, None)
    is_network = isinstance(kind, type) and issubclass(kind, package.PreTrainedModel)
    if not is_network:
        named = [n for n in dir(package) if n.endswith("Model")]
        raise unknown_name("class of transformers", name, named)
    if kind.main_input_name != "pixel_values":
        tower = name.replace("Model", "VisionModel")
        raise UsageError(
            f"transformers:{name} is no network for images alone",
            fix=f"name its tower for images, transformers:{tower}"
            if hasattr(package, tower)
            else "name a class whose input is pixel_values",
        )
    return kind


def _own(config: dict[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """The part of a configuration that is the class's own: a CLIP's has one for each tower."""
    wanted = kind.config_class
    found = config.get("model_type")
    part = config.get(wanted.base_config_key)
    if found == wanted.model_type:
        return config
    if isinstance(part, dict) and part.get("model_type", wanted.model_type) == wanted.model_type:
        return part
    names = ", ".join(map(str, config.get("architectures") or ["another class"]))
    raise ModelError(
        f"the folder's config.json is of {names} (model_type {found}), not of {where}",
        where=where,
        fix=f"name the class that its config.json is for: transformers:{names}",
    )


def load_pretrained(network: TransformersNetwork, folder: Path) -> tuple[list[str], list[str]]:
    """Load a folder's weights; gives the names that it lacks, and those that aren't used.

    By the library's own loading, which knows the names of older versions, the towers of a model of
    several, and weights in parts. Raises `ModelError` for weights that can't be read, have another
    shape or values that aren't finite; the network is then unchanged.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            "the folder has no weights in safetensors, the only form that is read here",
            where=folder,
            fix=f"download {_WEIGHTS[0]}; or, where the model is trusted and has a .bin alone, "
            "load it in transformers on another machine and save_pretrained() it",
        )
    try:
        loaded, found = type(network.model).from_pretrained(
            folder,
            config=network.model.config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as exc:  # the library's, safetensors' and torch's own
        raise ModelError(
            f"the weights can't be loaded: {first_line(exc)}",
            where=folder,
            fix="check that config.json and the weights are of one model, and whole",
        ) from exc
    state = loaded.state_dict()
    _refuse_infinite(state, folder)
    own = network.model.state_dict().keys()
    network.model.load_state_dict({name: state[name] for name in own})
    missing = [_MODEL + name for name in sorted(found["missing_keys"]) if name in own]
    return missing, sorted(found["unexpected_keys"])


def _refuse_infinite(state: Mapping[str, Tensor], folder: Path) -> None:
    broken = [n for n, v in state.items() if not is_finite(v)]
    if broken:
        raise ModelError(
            f"{len(broken)} tensors hold values that are not finite, first {broken[0]!r}",
            where=folder,
            fix="take weights from before the training diverged",
        )
