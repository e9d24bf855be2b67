"""A picture of where the network looked: its map over the image as it was stored."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from lorkd_deploy.arrays import F32, U8
from lorkd_deploy.preprocess import Preprocess, to_rgb
from lorkd_deploy.safety.explanation import heat

_COLOUR = np.array([255.0, 110.0, 0.0], np.float32)  # no grey image has it
_STRONGEST = 0.6  # how much of the colour there is where the map is highest
_UNSEEN = 0.5  # brightness of what the network's crop leaves out
_LINE = 256  # pixels of the shorter side for each of the outline's


def overlay(image: U8, activation: F32, preprocess: Preprocess) -> U8:
    """`image`, `(H, W)` or `(H, W, 3)`, in RGB with the map `(h, w)` over what the network saw of
    it; the rest is darker. The line is where the map is half its largest.
    """
    rgb = to_rgb(image)
    top, left, height, width = preprocess.seen(*rgb.shape[:2])
    part = slice(top, top + height), slice(left, left + width)
    whole = (rgb * np.float32(_UNSEEN)).astype(np.uint8)
    whole[part] = painted(rgb[part], activation)
    return whole


def painted(image: U8, activation: F32) -> U8:
    """The map `(h, w)` over the whole of an RGB image `(H, W, 3)`."""
    height, width = image.shape[:2]
    found = heat(activation, width, height)
    share = _STRONGEST * found[..., None]
    mixed = image * (1 - share) + _COLOUR * share
    mixed[_outline(found > 0.5, max(1, min(height, width) // _LINE))] = _COLOUR
    return np.asarray(mixed.round(), np.uint8)


def _outline(inside: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    """The outermost `pixels` of a region; the image's edge is none of its own."""
    padded = np.pad(inside, pixels, mode="edge")
    core = inside.copy()
    for axis in (0, 1):
        for step in (-pixels, pixels):
            moved = np.roll(padded, step, axis=axis)
            core &= moved[pixels : -pixels or None, pixels : -pixels or None]
    return np.asarray(inside & ~core, np.bool_)


def png(image: U8) -> bytes:
    """An image as the bytes of a PNG file, without metadata."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return stream.getvalue()
