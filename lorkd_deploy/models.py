"""Names → modules: torchvision, timm, or a function of the user's own, as feature extractors.

Nothing is ever downloaded: weights come from a file by `load_checkpoint`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import ModelError, UsageError, unknown_name
from lorkd_deploy.weight_files import read_weights

log = logging.getLogger(__name__)
_FORMS = "torchvision:NAME, timm:NAME or pkg.module:function"
_IMAGENET_CLASSES = 1000  # what every torchvision classifier is built with


def build(architecture: str) -> nn.Module:
    """A new module `(N, 3, H, W)` → features `(N, F)`, with random weights.

    `torchvision:NAME` and `timm:NAME` come without their last classifier and the dropout before
    it; `pkg.module:function` is called without arguments and returns such a module itself.

    Its weights are float32, whatever the function made them. Raises `UsageError` for an unknown
    name (with the nearest ones), `ModelError` if the function fails or gives no module.
    """
    source, separator, name = architecture.partition(":")
    if not separator or not source or not name:
        raise UsageError(f"{architecture!r} is no architecture", fix=f"write {_FORMS}")
    if source == "torchvision":
        return _from_torchvision(name)
    if source == "timm":
        return _from_timm(name)
    return _in_float32(_from_function(source, name), architecture)


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


def _from_torchvision(name: str) -> nn.Module:
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


def _from_timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as exc:
        raise ModelError("timm is not installed", fix="pip install 'lorkd-deploy[train]'") from exc
    if not timm.is_model(name):
        raise unknown_name("timm architecture", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=0)


def _from_function(source: str, name: str) -> nn.Module:
    where = f"{source}:{name}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module of the user's lies where they are
    try:
        module = import_module(source)
    except ModuleNotFoundError as exc:
        if exc.name and (source == exc.name or source.startswith(exc.name + ".")):
            raise UsageError(
                f"there is no Python module {exc.name!r}",
                where=where,
                fix=f"install it or put its folder on PYTHONPATH; or write {_FORMS}",
            ) from exc
        raise ModelError(f"importing {source!r} failed: {exc}", where=where) from exc
    except Exception as exc:
        raise ModelError(f"importing {source!r} failed: {exc}", where=where) from exc
    function = getattr(module, name, None)
    if not callable(function):
        callables = [n for n in dir(module) if callable(getattr(module, n)) and n[0] != "_"]
        raise unknown_name("function", name, callables, where=source)
    try:
        made = function()
    except Exception as exc:
        raise ModelError(f"{where}() failed: {exc}", where=where) from exc
    if not isinstance(made, nn.Module):
        raise ModelError(f"{where}() gave a {type(made).__name__}, wanted an nn.Module")
    return made


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
    except Exception as exc:
        first = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(
            f"{kind} can't be run on images of {size} × {size} pixels: {first}",
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


@dataclass(frozen=True)
class LoadReport:
    """Names that the checkpoint lacks, and names in it that the module doesn't have."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_checkpoint(
    module: nn.Module,
    path: str | Path,
    prefix: Mapping[str, str] | None = None,
    pattern: Mapping[str, str] | None = None,
) -> LoadReport:
    """Load weights into `module` from safetensors, or a torch file read with `weights_only=True`.

    `prefix` replaces the beginnings of keys, the longest that fits: `{"module.": ""}`, then
    `pattern` what fits its regular expressions, anywhere in a key. Weights
    that a training script keeps under a usual name (`state_dict`, `model`, `ema`) are found.

    Raises `ModelError` as `read_weights` does, and for a checkpoint of another architecture:
    shapes that differ, or fewer than half of the module's weights found. The module is then
    unchanged.
    """
    path = Path(path)
    own = module.state_dict(keep_vars=True)
    state = read_weights(path, prefix or {}, own, pattern)
    differ = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    if differ:
        key = differ[0]
        raise _other_architecture(
            module, path, f"{len(differ)} weights have another shape, first {key!r}: "
            f"{tuple(state[key].shape)}, wanted {tuple(own[key].shape)}"
        )  # fmt: skip
    weights = [name for name, _ in module.named_parameters()]
    found = sum(name in state for name in weights)
    if 2 * found < len(weights) or not found:
        lacking = [name for name in weights if name not in state]
        raise _other_architecture(
            module, path, f"it has {found} of the {len(weights)} weights; it lacks {lacking[0]!r}, "
            + _nearest(lacking[0], [name for name in state if name not in own])
        )  # fmt: skip
    result = module.load_state_dict(state, strict=False)
    missing = [k for k in result.missing_keys if not k.endswith("num_batches_tracked")]
    return LoadReport(tuple(missing), tuple(result.unexpected_keys))


def _nearest(name: str, others: list[str]) -> str:
    """What a checkpoint has where `name` is missing: names may differ in a part alone."""
    near = get_close_matches(name, others, 1, cutoff=0.0)
    return f"the nearest name it has is {near[0]!r}" if near else "and has no other names"


def _other_architecture(module: nn.Module, path: Path, how: str) -> ModelError:
    return ModelError(
        f"the checkpoint is not one of {type(module).__name__}: {how}",
        where=path,
        fix="name the architecture it was trained with; if only names differ, map "
        "their beginnings (prefix) or parts (pattern)",
    )
