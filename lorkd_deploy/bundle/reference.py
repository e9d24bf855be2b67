"""The reference logits of an engine: what it is held against, in `parity/ENGINE.safetensors`.

They are the unfused torch model's, written before any export:

    inputs                      (n, K) for the generated inputs (`parity_inputs.py`)
    TASK.index  TASK.sha256     (m,) rows of the task's test split, (m, 32) hashes of their images
    TASK.logits                 (m, K_t) for these images
    inputs.guard  TASK.guard    (n,) and (m,): what a guard says of both, only where there is one
    inputs.maps  TASK.maps      (n', K, h, w) and (m', K_t, h, w): class activation maps of those at
                                `mapped(n)` and `mapped(m)`, only where the recipe asks for them
    TASK.faithful               (m', 2): areas under the deletion and insertion curves of the latter
    TASK.images  TASK.labels    (m, S, S, 3), and (m,) or (m, K_t): only where the recipe ships them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.errors import BundleError, ModelError
from lorkd_deploy.storage import Tensors

INPUTS = "inputs"
MAPPED = 64  # images whose maps are kept, at most


class ImageReference(NamedTuple):
    """A task's parity images: where in its test split they are, their raw hashes, their logits.

    `indices` int64 `(m,)`, `sha256` uint8 `(m, 32)`, `logits` float32 `(m, K)`; only where they are
    shipped `images`, uint8 `(m, S, S, 3)` at network size, and `labels`, int64 `(m,)` or `(m, K)`.
    `guard` float32 `(m,)` are the scores of a guard (`safety/guard.py`), where there is one, `maps`
    `(m', K, h, w)` and `faithful` `(m', 2)` what `safety/explanation.py` says of those at
    `mapped(m)`.
    """

    indices: I64
    sha256: U8
    logits: F32
    images: U8 | None = None
    labels: I64 | None = None
    guard: F32 | None = None
    maps: F32 | None = None
    faithful: F32 | None = None


def mapped(count: int) -> I64:
    """Which of `count` images have maps: at most `MAPPED`, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, MAPPED)).astype(np.int64))


def reference_tensors(
    inputs_logits: F32,
    images: Mapping[str, ImageReference],
    inputs_guard: F32 | None = None,
    inputs_maps: F32 | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The tensors of one engine's reference.

    `inputs_logits` `(n, K)` are the unfused model's on `parity_inputs(n, …)`, `images` has an entry
    for each task of the engine, `inputs_guard` `(n,)` are the scores of a guard, `inputs_maps` the
    maps of those at `mapped(n)`. Raises `ModelError` for logits that are not finite: nothing could
    be proven by them.
    """
    tensors: dict[str, npt.NDArray[Any]] = {INPUTS: np.asarray(inputs_logits, np.float32)}
    if inputs_guard is not None:
        tensors[f"{INPUTS}.guard"] = np.asarray(inputs_guard, np.float32)
    if inputs_maps is not None:
        tensors[f"{INPUTS}.maps"] = np.asarray(inputs_maps, np.float32)
    for task, given in images.items():
        count = len(given.indices)
        if given.sha256.shape != (count, 32) or len(given.logits) != count:
            raise ValueError(f"indices, hashes and logits of {task} are not of one length")
        tensors[f"{task}.index"] = np.asarray(given.indices, np.int64)
        tensors[f"{task}.sha256"] = np.asarray(given.sha256, np.uint8)
        tensors[f"{task}.logits"] = np.asarray(given.logits, np.float32)
        if given.guard is not None:
            tensors[f"{task}.guard"] = np.asarray(given.guard, np.float32)
        if given.maps is not None:
            tensors[f"{task}.maps"] = np.asarray(given.maps, np.float32)
        if given.images is not None:
            tensors[f"{task}.images"] = np.asarray(given.images, np.uint8)
            if given.labels is not None:
                tensors[f"{task}.labels"] = np.asarray(given.labels, np.int64)
    for name, value in tensors.items():
        if value.dtype == np.float32 and not np.isfinite(value).all():
            raise ModelError(
                f"the trained model's logits are not finite ({name})",
                fix="lower the learning rate, or look at the training history",
            )
    return tensors | {
        f"{task}.faithful": np.asarray(given.faithful, np.float32)  # NaN: of a map of nothing
        for task, given in images.items()
        if given.faithful is not None
    }


def inputs_reference(tensors: Tensors, where: Path) -> F32:
    """The logits `(n, K)` for the generated inputs; raises `BundleError` where they are missing."""
    return _tensor(tensors, INPUTS, where)


def image_reference(tensors: Tensors, task: str, where: Path) -> ImageReference:
    """What `tensors` hold of a task's test images; raises `BundleError` where that is missing."""
    return ImageReference(
        _tensor(tensors, f"{task}.index", where),
        _tensor(tensors, f"{task}.sha256", where),
        _tensor(tensors, f"{task}.logits", where),
        tensors.get(f"{task}.images"),
        tensors.get(f"{task}.labels"),
        tensors.get(f"{task}.guard"),
        tensors.get(f"{task}.maps"),
        tensors.get(f"{task}.faithful"),
    )


def _tensor(tensors: Tensors, name: str, where: Path) -> npt.NDArray[Any]:
    if name not in tensors:
        raise BundleError(
            f"the bundle has no reference {name!r}", where=where, fix="run `lorkd decompose` again"
        )
    return tensors[name]
