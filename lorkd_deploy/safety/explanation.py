"""Where did it look? The class activation map, and what it is worth.

The engine gives it beside its logits: for each class, how much each place of the last feature map
adds to that class's logit. It is Grad-CAM (Selvaraju et al. 2017), which for a global average
pooling in front of a linear head is CAM (Zhou et al. 2016): the places' sum and the head's bias are
the logit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from lorkd_deploy.arrays import F32, F64, U8

STEPS = 16  # in which an image is taken away or put in
BLUR = 1 / 20  # of an image's side: the deviation of the blur that insertion starts from
_GREY = 128  # what a deleted pixel becomes
Answer = Callable[[U8], F64]  # images (n, S, S, 3) → probability of one class (n,)


class Faithfulness(NamedTuple):
    """Areas under the deletion and the insertion curve (Petsiuk et al. 2018), 0 … 1 each.

    The curves are the probability of the class that was answered while the pixels where the map is
    highest are turned grey first (deletion: the lower the better), or come first into the blurred
    image (insertion: the higher the better), in `STEPS` equal steps.
    """

    deletion: float
    insertion: float


def heat(activation: F32, width: int, height: int) -> F32:
    """A map `(h, w)` over an image, float32 `(height, width)`, bilinear: what speaks for the class,
    as a fraction of its largest; zeros where nothing does.
    """
    picture = Image.fromarray(np.ascontiguousarray(activation, np.float32))
    large = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    large = np.maximum(large, 0)
    return large / max(float(large.max()), 1e-12)


def area(activation: F32, side: int) -> float:
    """The share of an image of `side` pixels where a map `(h, w)` is above half its largest; NaN
    for one in which nothing speaks for the class.
    """
    found = heat(activation, side, side)
    return float((found > 0.5).mean()) if found.any() else float("nan")


def faithfulness(image: U8, activation: F32, answer: Answer) -> Faithfulness:
    """What the map `(h, w)` of an image `(S, S, 3)` is worth, by what `answer` says of the image
    in parts; NaN where nothing speaks for the class.
    """
    side = len(image)
    found = heat(activation, side, side)
    if not found.any():
        return Faithfulness(float("nan"), float("nan"))
    order = np.argsort(-found.ravel(), kind="stable")
    rank = np.empty(side * side, np.int64)
    rank[order] = np.arange(side * side)
    reached = np.linspace(0, side * side, STEPS + 1)[:, None, None]
    first = (rank.reshape(1, side, side) < reached)[..., None]
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(side * BLUR))
    deleted = np.where(first, np.uint8(_GREY), image)
    inserted = np.where(first, image, np.asarray(blurred))
    given = answer(np.concatenate([deleted, inserted]))
    curves = np.split(given, 2)
    return Faithfulness(*(float((curve[1:] + curve[:-1]).mean() / 2) for curve in curves))
