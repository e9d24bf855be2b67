"""The generated parity inputs: the same bytes on every device, and no patient's image among them.

`numpy.random.Generator` may change its streams between NumPy releases; a bit generator's raw
output may not. Only that and integer arithmetic is used here.
"""

from __future__ import annotations

import numpy as np

from lorkd_deploy.arrays import U8
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import BundleError
from lorkd_deploy.storage import sha256_bytes

_CELLS = (2, 3, 5, 8, 13, 32)  # cells a side: from two large areas to noise


def parity_inputs(count: int, size: int, seed: int) -> U8:
    """`count` coloured pictures uint8 `(count, size, size, 3)`, a pure function of its arguments.

    Each is a sum of random grids, coarse to fine, with an own contrast and brightness: plain noise
    alone would drive every image to nearly the same logits and so prove little.
    """
    raw = np.random.PCG64(seed)
    images = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        cells = _CELLS[index % len(_CELLS)]
        coarse = _grid(raw, cells, size)
        fine = _grid(raw, size, size)
        weight = 4 * (index % 4)  # sixteenths of noise: none, a quarter, half, three quarters
        mixed = (coarse * (16 - weight) + fine * weight) // 16
        contrast, brightness = (int(v) for v in _bytes(raw, 2))
        images[index] = np.clip(
            (mixed - 128) * (64 + contrast) // 160 + 64 + brightness // 2, 0, 255
        )
    return images


def known_inputs(bundle: Bundle) -> U8:
    """The inputs of a bundle, checked against what they were when its reference was made.

    Raises `BundleError` where this version generates others.
    """
    manifest = bundle.manifest
    known = manifest.parity
    inputs = parity_inputs(known.inputs, manifest.preprocess.size, known.seed)
    if sha256_bytes(inputs.tobytes()) != known.sha256:
        raise BundleError(
            "the generated parity inputs are not those of the bundle",
            where=bundle.path,
            fix="use the version of lorkd-deploy that wrote the bundle: "
            f"{manifest.versions.get('lorkd-deploy', 'unknown')}",
        )
    return inputs


def _grid(
    raw: np.random.PCG64, cells: int, size: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Random `(cells, cells, 3)` values 0…255, enlarged to `(size, size, 3)` without smoothing."""
    values = _bytes(raw, cells * cells * 3).reshape(cells, cells, 3).astype(np.int64)
    rows = np.arange(size) * cells // size
    return np.asarray(values[rows][:, rows])


def _bytes(raw: np.random.PCG64, count: int) -> U8:
    # Little-endian on every machine, so that a big-endian one reads the same bytes.
    words = np.asarray(raw.random_raw(-(-count // 8)), dtype="<u8")
    return np.frombuffer(words.tobytes(), np.uint8)[:count]
