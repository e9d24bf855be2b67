"""Light changes of training images by torchvision's v2 functions, as `train.augment` lists them.

torchvision's own transforms draw from one generator for the whole process, which the loader's
threads share with the training step: a resumed training would not see the same images. So each
image's values are drawn here, from the seed, the step and the image's place in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.recipe import (
    AugmentSpec,
    ColorJitter,
    GaussianBlur,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    VerticalFlip,
)

_TRIES = 10  # for a crop of the drawn area and shape that lies inside the image


def augmented(
    images: U8,
    transforms: Sequence[AugmentSpec],
    seed: int,
    step: int,
    places: I64,
) -> U8:
    """uint8 `(N, S, S, 3)` after all `transforms` in their order; a pure function.

    `places` `(N,)` are those of the images in the step's batch.
    """
    rngs = [np.random.default_rng((seed, 3, step, int(place))) for place in places]
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    for transform in transforms:
        pixels = _APPLY[transform.kind](pixels, transform, rngs)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _functions() -> Any:
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped,unused-ignore]

    return functional


def _vertical_flip(x: Tensor, spec: VerticalFlip, rng: np.random.Generator) -> Tensor:
    return x.flip(1) if rng.random() < spec.probability else x


def _random_resized_crop(x: Tensor, spec: RandomResizedCrop, rng: np.random.Generator) -> Tensor:
    side = x.shape[1]
    low, high = np.log(spec.ratio)
    height = width = side
    for _ in range(_TRIES):
        area = side**2 * rng.uniform(*spec.scale)
        ratio = math.exp(rng.uniform(low, high))
        sides = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if min(sides) > 0 and max(sides) <= side:
            height, width = sides
            break
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    made: Tensor = _functions().resized_crop(
        x, int(top), int(left), height, width, [side, side], antialias=True
    )
    return made


def _rotation(x: Tensor, spec: Rotation, rngs: Sequence[np.random.Generator]) -> Tensor:
    """`(N, 3, S, S)`, each turned about its middle by an angle of its own; what comes in from
    outside is the image mirrored at its border.

    As torchvision's `pad` by the mirror, `rotate` and `center_crop`, but all images at once.
    """
    angles = np.radians([rng.uniform(-spec.degrees, spec.degrees) for rng in rngs])
    cos, sin = (torch.from_numpy(f(angles)).float()[:, None, None] for f in (np.cos, np.sin))
    # With the corners aligned -1 and 1 are the middles of the outermost pixels: the mirror's place.
    along = torch.linspace(-1, 1, x.shape[-1])
    grid = torch.stack(
        [cos * along - sin * along[:, None], sin * along + cos * along[:, None]], dim=-1
    )
    made = functional.grid_sample(
        x.float(), grid, "bilinear", padding_mode="reflection", align_corners=True
    )
    return made.round().to(x.dtype)


def _color_jitter(x: Tensor, spec: ColorJitter, rng: np.random.Generator) -> Tensor:
    f = _functions()
    for name in ("brightness", "contrast", "saturation"):
        if reach := getattr(spec, name):
            x = getattr(f, f"adjust_{name}")(x, rng.uniform(1 - reach, 1 + reach))
    return f.adjust_hue(x, rng.uniform(-spec.hue, spec.hue)) if spec.hue else x


def _gaussian_blur(x: Tensor, spec: GaussianBlur, rng: np.random.Generator) -> Tensor:
    sigma = rng.uniform(*spec.sigma)
    if rng.random() >= spec.probability:
        return x
    made: Tensor = _functions().gaussian_blur(x, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)
    return made


def _random_erasing(x: Tensor, spec: RandomErasing, rng: np.random.Generator) -> Tensor:
    """A rectangle in the image's mean colour."""
    side = x.shape[1]
    area, ratio = side**2 * rng.uniform(*spec.scale), math.exp(rng.uniform(-1, 1))
    height = min(side, max(1, round(math.sqrt(area * ratio))))
    width = min(side, max(1, round(math.sqrt(area / ratio))))
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    if rng.random() >= spec.probability:
        return x
    mean = x.float().mean((1, 2)).round().to(x.dtype)
    made: Tensor = _functions().erase(
        x, int(top), int(left), height, width, mean[:, None, None].expand(3, height, width)
    )
    return made


_OfAll = Callable[[Tensor, Any, Sequence[np.random.Generator]], Tensor]


def _each(change: Callable[[Tensor, Any, np.random.Generator], Tensor]) -> _OfAll:
    """`change` of one image `(3, S, S)`, for a batch `(N, 3, S, S)`."""
    return lambda images, spec, rngs: torch.stack(
        [change(x, spec, rng) for x, rng in zip(images, rngs, strict=True)]
    )


_APPLY: dict[str, _OfAll] = {
    "vertical_flip": _each(_vertical_flip),
    "random_resized_crop": _each(_random_resized_crop),
    "rotation": _rotation,
    "color_jitter": _each(_color_jitter),
    "gaussian_blur": _each(_gaussian_blur),
    "random_erasing": _each(_random_erasing),
}
