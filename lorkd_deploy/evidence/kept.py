"""What was computed of a training's answers already, so that a study that grows does only the new.

A file's name has the hash of all that its arrays depend on, the version of this package among them.
The folder may be deleted at any time: then it is all computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy._version import __version__
from lorkd_deploy.arrays import F64
from lorkd_deploy.errors import BundleError
from lorkd_deploy.storage import canonical_json, read_tensors, sha256_bytes, write_tensors

Arrays = dict[str, F64]


class Kept:
    """Arrays by name in a file per training and kind; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def read(self, key: str) -> Arrays:
        """None of them where there is no such file, or it is damaged."""
        if self._folder is None:
            return {}
        try:
            return read_tensors(self._folder / f"{key}.safetensors")
        except BundleError:
            return {}

    def write(self, key: str, arrays: Arrays) -> None:
        """In place of what was kept under `key`."""
        if self._folder is not None:
            write_tensors(self._folder / f"{key}.safetensors", arrays, digest=True)


def key_of(what: str, arrays: Mapping[str, npt.NDArray[Any]], **settings: Any) -> str:
    """A file's name: of what it is, and of all that it depends on; `settings` are JSON."""
    depends = {
        "version": __version__,
        "arrays": {name: _sha256(values) for name, values in arrays.items()},
        **settings,
    }
    return f"{what}-{sha256_bytes(canonical_json(depends))[:32]}"


def _sha256(values: npt.NDArray[Any]) -> str:
    array = np.ascontiguousarray(values)
    return sha256_bytes(f"{array.dtype} {array.shape}".encode() + array.tobytes())
