"""From a file to the network's input: one definition, and what can't be used is said to be so."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lorkd_deploy.errors import ImageError
from lorkd_deploy.image_files import read_image
from lorkd_deploy.preprocess import RESAMPLINGS, Preprocess, resampling_sha256, to_rgb
from lorkd_deploy.storage import sha256_bytes

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(depth: int, kind: int, channels: int) -> bytes:
    """A noise PNG of 20 × 20 px; Pillow itself doesn't write 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + RNG.bytes(20 * channels * depth // 8) for _ in range(20))
    head = struct.pack(">IIBBBBB", 20, 20, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def test_a_file_of_every_kind_gives_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", PIXELS)
    (tmp_path / "b.npy").rename(tmp_path / "B.NPY")
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "c.png")
    for name in ("a.png", "B.NPY", "c.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), PIXELS, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "RGB", "LA", "RGBA"]
)
def test_16_bits_are_refused_in_every_colour(tmp_path: Path, kind: int, channels: int) -> None:
    (tmp_path / "deep.png").write_bytes(png(16, kind, channels))
    with pytest.raises(ImageError, match="not 8-bit") as caught:
        read_image(tmp_path / "deep.png")
    assert "window" in str(caught.value.fix)
    if kind in (0, 2):
        (tmp_path / "plain.png").write_bytes(png(8, kind, channels))
        assert read_image(tmp_path / "plain.png").dtype == np.uint8


def test_what_is_no_png_jpeg_or_npy_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("a.png", "empty.png", "objects.npy"):
        with pytest.raises(ImageError, match="can't be read") as caught:
            read_image(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "nowhere.png")


def test_grey_becomes_rgb_and_other_shapes_are_refused() -> None:
    grey = PIXELS[..., 0]
    for image in (grey, grey[..., None]):
        rgb = to_rgb(image)
        assert all((rgb[..., channel] == grey).all() for channel in range(3))
    for wrong, says in (
        (PIXELS.astype(np.uint16), "uint16"),
        (PIXELS[..., :2], "shape"),
        (PIXELS[:1, :1], "1 × 1 px"),
    ):
        with pytest.raises(ImageError, match=says):
            to_rgb(wrong)


def test_pixels_are_scaled_and_moved_per_channel() -> None:
    preprocess = Preprocess(size=20, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    x = preprocess([PIXELS[:, :20]])
    expected = (PIXELS[:, :20] / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 1.0])
    assert (x.dtype, x.shape) == (np.float32, (1, 3, 20, 20))
    np.testing.assert_allclose(x[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_the_shorter_side_is_resized_and_the_centre_cut() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    inner = Preprocess(size=10, resize_shorter=10, interpolation="nearest").geometry(wide)
    assert inner.shape == (10, 10, 3) and inner.min() == 255
    assert Preprocess(size=30).geometry(wide).mean() == pytest.approx(85, abs=1)


@pytest.mark.parametrize(
    ("interpolation", "grey", "rgb"),
    [
        ("nearest", "3eb2cefdf665ef6c", "b09e3404a6cfb8c3"),
        ("bilinear", "9bd5d016c3761fd8", "1bf1dd88eea681a5"),
        ("bicubic", "d08b1ff8d7ad28b8", "c65dd1fed2052755"),
    ],
)
def test_the_bytes_are_those_that_networks_were_trained_on(
    interpolation: Literal["nearest", "bilinear", "bicubic"], grey: str, rgb: str
) -> None:
    """Another hash means that this Pillow, NumPy or code makes other images of the same files."""
    y, x, channel = np.ogrid[:20, :30, :3]
    image = ((37 * x + 101 * y + 59 * channel + 7 * x * y) % 256).astype(np.uint8)
    preprocess = Preprocess(
        size=16,
        resize_shorter=17,
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    found = [sha256_bytes(preprocess([part]).tobytes()) for part in (image[..., 0], image)]
    assert [digest[:16] for digest in found] == [grey, rgb]


def test_any_other_definition_has_another_hash() -> None:
    assert Preprocess(size=64).sha256 == Preprocess(size=64, std=(0.5, 0.5, 0.5)).sha256
    others = [
        Preprocess(size=65),
        Preprocess(size=64, interpolation="bicubic"),
        Preprocess(size=64, resize_shorter=64),
        Preprocess(size=64, mean=(0.5, 0.5, 0.4)),
    ]
    assert len({p.sha256 for p in (Preprocess(size=64), *others)}) == 5
    for wrong in ({"size": 4}, {"size": 64, "resize_shorter": 32}, {"size": 64, "std": (0, 1, 1)}):
        with pytest.raises(ValidationError):
            Preprocess.model_validate(wrong)


def test_this_pillow_resizes_as_one_of_those_that_were_tried() -> None:
    assert (resampling_sha256("bilinear"), resampling_sha256("bicubic")) in RESAMPLINGS
    assert (
        len({resampling_sha256(filtered) for filtered in ("nearest", "bilinear", "bicubic")}) == 3
    )
