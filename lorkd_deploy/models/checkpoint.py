"""Weights from a file or a hub's folder, loaded into a module of the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.models.folder import weights_in
from lorkd_deploy.models.open_clip import VISUAL, OpenClipNetwork
from lorkd_deploy.models.transformers import TransformersNetwork, load_pretrained
from lorkd_deploy.weight_files import read_weights


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

    `path` is that file, or the folder of a model hub that has it; for `transformers:CLASS` always
    the folder, whose names the library maps itself.

    `prefix` replaces the beginnings of keys, the longest that fits: `{"module.": ""}`, then
    `pattern` what fits its regular expressions, anywhere in a key. Weights
    that a training script keeps under a usual name (`state_dict`, `model`, `ema`) are found.

    Raises `ModelError` as `read_weights` does, and for a checkpoint of another architecture:
    shapes that differ, or fewer than half of the module's weights found. The module is then
    unchanged.
    """
    path = Path(path)
    if isinstance(module, TransformersNetwork):
        return _load_pretrained(module, path, bool(prefix or pattern))
    path = weights_in(path) if path.is_dir() else path
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
    more = result.unexpected_keys
    if isinstance(module, OpenClipNetwork):  # the other tower's are no loss
        more = [name for name in more if name.startswith(VISUAL)]
    return LoadReport(tuple(missing), tuple(more))


def _load_pretrained(module: TransformersNetwork, path: Path, renamed: bool) -> LoadReport:
    if renamed:
        raise UsageError(
            "prefix and pattern rename nothing in the folder of a model of transformers",
            fix="leave them out: the library knows its own names",
        )
    if not path.is_dir():
        raise ModelError("the checkpoint is no folder", where=path, fix="name config.json's folder")
    missing, more = load_pretrained(module, path)
    return LoadReport(tuple(missing), tuple(more))


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
