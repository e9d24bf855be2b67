"""From a stored image to the network's input: one definition for training, checks and predict.

Pure NumPy and Pillow, so that the same file gives the same bytes with and without torch.
The definition travels in every bundle with its hash; a runtime with another hash is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image
from pydantic import Field, model_validator

from lorkd_deploy.arrays import F32, U8, Batch
from lorkd_deploy.errors import ImageError
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import canonical_json, sha256_bytes

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# What `resampling_sha256` gives by those Pillows that were tried, for bilinear and bicubic.
RESAMPLINGS = {
    (
        "a636329389981d862cae6c7fd7f1181aa359129973678d39d5ee8cec93007d88",
        "3d7c7210e9ec9e1017f53a977d732efe79a66b05ed51524ec62759dc854fa8e0",
    ): "Pillow 13.0",
    (
        "85a6fbb5c5a9d707fcfe802006fb67858d6c42c6c64bb3d0f548ff8d54c0d179",
        "d2fdc86857bfb478b2c9f17918d0e57d030053478aebed468e7f4cbdba1838e7",
    ): "Pillow 9.5 to 12.3",
}
SMALLEST_SIDE = 8  # px; below this an upscaled image holds nothing a network could have learnt


class Preprocess(Part):
    """Image uint8 → resize (and centre crop) → RGB → (x / 255 − mean) / std, float32, CHW.

    What a model may differ in has a field, and so stands in the hash. The order (RGB) and the range
    (0 … 1 before `mean` and `std`) are the same for all: whoever feeds BGR or 0 … 255 fails parity.
    So is the image's orientation, that of its EXIF data, which stands in the hash for that reason:
    models from before it was applied have another one.
    """

    size: int = Field(ge=8, le=2048, description="side of the square network input, px")
    resize_shorter: int | None = Field(
        default=None,
        description="resize the shorter side to this, then centre-crop to `size`; "
        "unset: resize both sides to `size`",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _sensible(self) -> Preprocess:
        if self.resize_shorter is not None and self.resize_shorter < self.size:
            raise ValueError("resize_shorter must not be smaller than size")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def sha256(self) -> str:
        """Hash of the definition, stored in bundle and engine."""
        definition = {"orientation": "EXIF", **self.model_dump(mode="json")}
        return sha256_bytes(canonical_json(definition))

    @property
    def in_words(self) -> str:
        """The definition in one line of ASCII, for whoever writes a client in another language."""
        return (
            f"{self._resized}, (x / 255 - {list(self.mean)}) / {list(self.std)}, float32, "
            "channels first"
        )

    @property
    def to_pixels(self) -> str:
        """The same for a client of an engine that normalises by itself (`raw`)."""
        return f"{self._resized}, uint8, channels last"

    @property
    def _resized(self) -> str:
        size = self.size
        resize = (
            f"to {size} x {size} px"
            if self.resize_shorter is None
            else f"of the shorter side to {self.resize_shorter} px, centre crop {size} x {size}"
        )
        return f"EXIF orientation applied, RGB, {self.interpolation} resize {resize}"

    def geometry(self, image: U8) -> U8:
        """Resize one uint8 image `(H, W)`, `(H, W, 1)` or `(H, W, 3)` to RGB `(size, size, 3)`."""
        rgb = to_rgb(image)
        height, width = rgb.shape[:2]
        if self.resize_shorter is None:
            target = (self.size, self.size)
        else:
            ratio = self.resize_shorter / min(height, width)
            target = (max(self.size, round(width * ratio)), max(self.size, round(height * ratio)))
        if (width, height) != target:
            resized = Image.fromarray(rgb).resize(target, _FILTERS[self.interpolation])
            rgb = np.asarray(resized, dtype=np.uint8)
        top = (rgb.shape[0] - self.size) // 2
        left = (rgb.shape[1] - self.size) // 2
        return np.ascontiguousarray(rgb[top : top + self.size, left : left + self.size])

    def seen(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Which part of an image of `height` × `width` px `geometry` keeps: top, left, height and
        width, in whole pixels of that image.
        """
        if self.resize_shorter is None:
            return 0, 0, height, width
        share = self.size / self.resize_shorter * min(height, width)
        rows, columns = min(height, round(share)), min(width, round(share))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    @property
    def scale_and_shift(self) -> tuple[F32, F32]:
        """(x / 255 − mean) / std is `x · scale − shift`, rounded in this order; `(3,)` each."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return (1.0 / (255.0 * std)).astype(np.float32), (mean / std).astype(np.float32)

    def normalise(self, images: U8) -> F32:
        """uint8 `(N, size, size, 3)` → float32 `(N, 3, size, size)`."""
        scale, shift = self.scale_and_shift
        values = images.astype(np.float32) * scale - shift
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def stacked(self, images: Iterable[U8]) -> U8:
        """Images of any size → uint8 `(N, size, size, 3)`."""
        return np.stack([self.geometry(image) for image in images])

    def batch(self, images: U8, *, raw: bool) -> Batch:
        """What an engine takes of images at network size, uint8 `(N, size, size, 3)`: these as they
        are, if it was exported with `raw`, else the network's input.
        """
        return images if raw else self.normalise(images)

    def __call__(self, images: Iterable[U8]) -> F32:
        """Images of any size → network input float32 `(N, 3, size, size)`."""
        return self.normalise(self.stacked(images))


def resampling_sha256(interpolation: str) -> str:
    """Hash of what Pillow here makes of a pinned pattern, smaller and larger than it is.

    Pillow may round otherwise in any version, as 13.0 does: pictures that are resized then have
    other pixels by the same definition.
    """
    y, x, channel = np.ogrid[:61, :47, :3]
    pattern = ((7 * x * x + 13 * y * y + 3 * x * y + 57 * channel) % 256).astype(np.uint8)
    image = Image.fromarray(pattern)
    sizes = (29, 23), (83, 97)
    resized = [image.resize(size, _FILTERS[interpolation]).tobytes() for size in sizes]
    return sha256_bytes(b"".join(resized))


def resized_otherwise(interpolation: str, wanted: str | None, theirs: str) -> str | None:
    """What it means that Pillow here resizes to other pixels than the hash `wanted` was made with,
    by Pillow `theirs`; None where it doesn't, or there is no hash.
    """
    if wanted is None or resampling_sha256(interpolation) == wanted:
        return None
    return (
        f"Pillow {PIL.__version__} here resizes pictures to slightly other pixels than Pillow "
        f"{theirs}, by which the bundle was trained and scored: answers can differ from those "
        "for pictures that aren't at the network's size already. The parity of test images "
        f"that are resized here shows by how much; `pip install pillow=={theirs}` avoids it"
    )


def to_rgb(image: npt.NDArray[Any]) -> U8:
    """Grey `(H, W)` / `(H, W, 1)` or RGB `(H, W, 3)` uint8 → RGB `(H, W, 3)` uint8.

    The only place where grey becomes RGB. Raises `ImageError` for any other dtype or shape.
    """
    if image.dtype != np.uint8:
        raise ImageError(
            f"the image holds {image.dtype} values, 8-bit (uint8) is needed",
            fix="map it to 8 bits with the window that the training images had",
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(
            f"the image has shape {image.shape}, (H, W), (H, W, 1) or (H, W, 3) is needed",
            fix=_fix_of_shape(image.shape),
        )
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise ImageError(
            f"the image is {image.shape[1]} × {image.shape[0]} px, "
            f"at least {SMALLEST_SIDE} × {SMALLEST_SIDE} are needed",
            fix="check that the file is the whole image",
        )
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _fix_of_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[2] == 4:
        return "leave the alpha channel out: image[..., :3]"
    if len(shape) == 3 and shape[0] in (1, 3):
        return "put the channels last: image.transpose(1, 2, 0)"
    return "of a volume give single slices, each as an image"
