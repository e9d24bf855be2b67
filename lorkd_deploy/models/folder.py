"""Networks as model hubs keep them: a folder with a configuration in JSON and the weights.

A bundle keeps the configuration, so that what was made of a folder doesn't need it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from lorkd_deploy.errors import ModelError

CONFIG = "config.json"  # of transformers
OPEN_CLIP_CONFIG = "open_clip_config.json"
LOCAL_DIR = "local-dir"  # OpenCLIP's own word for a configuration that lies beside the weights
_WEIGHTS = (  # those of OpenCLIP first: its folders may hold the same for transformers
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


class FolderNetwork(nn.Module):
    """A network that was made by a folder's configuration, `config`."""

    config: dict[str, Any]


def config_of(module: nn.Module) -> dict[str, Any] | None:
    """What a module needs beside its architecture's name to be built again."""
    return module.config if isinstance(module, FolderNetwork) else None


def needs_folder(architecture: str) -> bool:
    """Whether it is built by a configuration from a folder."""
    source, _, name = architecture.partition(":")
    return source == "transformers" or (
        source == "open_clip" and name.partition(":")[0] == LOCAL_DIR
    )


def read_config(architecture: str, checkpoint: str | Path | None) -> dict[str, Any] | None:
    """The configuration of an architecture that needs one, from the folder `checkpoint`.

    Raises `ModelError` where it isn't there, or is no JSON object.
    """
    if not needs_folder(architecture):
        return None
    name = CONFIG if architecture.startswith("transformers:") else OPEN_CLIP_CONFIG
    if checkpoint is None or not Path(checkpoint).is_dir():
        raise ModelError(
            f"{architecture} is made by the configuration in a folder, and "
            + ("none is named" if checkpoint is None else "this is none"),
            where=checkpoint,
            fix=f"name the folder with {name} and the weights as `checkpoint`, beside "
            "`architecture`; nothing is downloaded",
        )
    file = Path(checkpoint) / name
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelError(
            "the folder has no configuration",
            where=file,
            fix="download the whole folder of the model, not the weights alone",
        ) from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"the configuration can't be read: {exc}", where=file) from exc
    if not isinstance(found, dict):
        raise ModelError("the configuration is no JSON object", where=file)
    return found


def weights_in(folder: Path) -> Path:
    """The file of weights in a hub's folder; raises `ModelError` where there is none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        "the folder has no weights",
        where=folder,
        fix=f"name the file itself, or call it {' or '.join(_WEIGHTS[2:])}",
    )
