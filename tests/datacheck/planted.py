"""Pictures that are all different, and copies of them as leaks have them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lorkd_deploy.arrays import U8

SIDE = 96
KINDS = ("exact", "mirrored", "resized", "recompressed", "brighter")


def pictures(count: int, seed: int) -> list[U8]:
    """Blurred noise in a round view that all share: textures, no two alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    inside = x * x + y * y < (0.45 * SIDE) ** 2
    made = []
    for _ in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8))
        soft = np.asarray(noise.filter(ImageFilter.GaussianBlur(3)), np.float32)
        soft = (soft - soft.mean()) / soft.std() * 35 + rng.uniform(90, 150)
        made.append(np.where(inside, np.clip(soft, 10, 245), 0).astype(np.uint8))
    return made


def copied(image: U8, kind: str) -> U8:
    """A copy: mirrored, at 3/4 of its size, as JPEG of quality 60, or 1.15 times as bright + 20."""
    picture = Image.fromarray(image)
    if kind == "mirrored":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif kind == "resized":
        width, height = picture.size
        picture = picture.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BICUBIC)
    elif kind == "recompressed":
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=60)
        picture = Image.open(stream)
    elif kind == "brighter":
        lit = np.asarray(picture).astype(np.float32) * 1.15 + 20
        picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    return np.asarray(picture)


def leaky(path: Path) -> Path:
    """An archive of 24, 8 and 8 pictures of two classes, whose first for testing is one of those
    for training, mirrored."""
    images = pictures(40, seed=1)
    images[32] = copied(images[0], "mirrored")
    ends, arrays = {"train": (0, 24), "val": (24, 32), "test": (32, 40)}, {}
    for split, (start, stop) in ends.items():
        arrays[f"{split}_images"] = np.stack(images[start:stop])
        arrays[f"{split}_labels"] = np.arange(stop - start) % 2
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
