"""What a model hub's folder says of the images that its network was trained on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lorkd_deploy.models.folder import OPEN_CLIP_CONFIG
from lorkd_deploy.preprocess import Preprocess

log = logging.getLogger(__name__)
PREPROCESSOR = "preprocessor_config.json"  # of transformers
_CLOSE = 2e-3  # of mean and deviation: recipes and model cards round them


class Published(NamedTuple):
    """Of values from 0 to 1 the mean and deviation per channel, and the input's side in px.

    None where the file doesn't say it.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: int | None


def contradictions(folder: Path, preprocess: Preprocess) -> tuple[str, ...]:
    """In words what `preprocess` differs in from the folder's own files, a line per value.

    Nothing where these say nothing of it; a file that can't be read is a warning.
    """
    found = []
    for name, read in ((PREPROCESSOR, _of_transformers), (OPEN_CLIP_CONFIG, _of_open_clip)):
        said = _read(folder / name)
        published = read(said) if said else Published(None, None, None)
        for key, wanted in published._asdict().items():
            own = getattr(preprocess, key)
            if wanted is not None and not _alike(own, wanted):
                found.append(f"{key} {_shown(own)}, where its {name} says {_shown(wanted)}")
    return tuple(found)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        log.warning("%s can't be read, so nothing is compared with it: %s", file, exc)
        return None
    return said if isinstance(said, dict) else None


def _of_transformers(said: Mapping[str, Any]) -> Published:
    scale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    mean, std = _channels(said.get("image_mean")), _channels(said.get("image_std"))
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    whole = 255 * scale if isinstance(scale, int | float) else 1.0  # what 1 is after rescaling
    crops = said.get("do_center_crop", "crop_size" in said)
    return Published(
        mean and tuple(value / whole for value in mean),
        std and tuple(value / whole for value in std),
        _side(said.get("crop_size") if crops else said.get("size")),
    )


def _of_open_clip(said: Mapping[str, Any]) -> Published:
    own = said.get("preprocess_cfg")
    own = own if isinstance(own, dict) else {}
    return Published(_channels(own.get("mean")), _channels(own.get("std")), _side(own.get("size")))


def _channels(value: Any) -> tuple[float, ...] | None:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return tuple(map(float, value)) if numbers and len(value) == 3 else None


def _side(value: Any) -> int | None:
    """Of a square; a shorter side alone says nothing of the other."""
    if isinstance(value, dict):
        value = value.get("height") if value.get("height") == value.get("width") else None
    if isinstance(value, list):
        value = value[-1] if len(set(value)) == 1 else None
    return value if isinstance(value, int) else None


def _alike(own: Any, wanted: Any) -> bool:
    return bool(np.allclose(own, wanted, rtol=0, atol=_CLOSE))


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value} px"
    return "[" + ", ".join(f"{one:.4g}" for one in value) + "]"
