"""Image files of every format: the same pixels, upright, and what can't be used is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.errors import ImageError
from lorkd_deploy.image_files import _TURNED, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
UNDONE = {
    **{turn: turn for turn in _TURNED.values()},
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "tiff", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_format_without_loss_gives_the_pixels(tmp_path: Path, ending: str, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / f"a.{ending}", lossless=True)
    wanted = image.convert("L" if mode in ("L", "1") else "RGB")
    found = np.asarray(Image.fromarray(read_image(tmp_path / f"a.{ending}")).convert(wanted.mode))
    np.testing.assert_array_equal(found, np.asarray(wanted))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_a_compressed_tiff(tmp_path: Path, compression: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), PIXELS)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_data_says(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    """Broad areas, since JPEG keeps no single pixel."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :, 0], upright[:, :16, 1], upright[16:, 32:, 2] = 250, 200, 150
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(UNDONE[_TURNED[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{ending}", exif=exif, quality=100)
    found = read_image(tmp_path / f"a.{ending}")
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as the command line does
def test_exif_data_that_is_broken_turns_nothing(tmp_path: Path) -> None:
    for number, data in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x")):
        Image.fromarray(PIXELS).save(tmp_path / f"{number}.png", exif=data)
        np.testing.assert_array_equal(read_image(tmp_path / f"{number}.png"), PIXELS)


@pytest.mark.parametrize("ending", ["tif", "webp", "png"])
def test_a_file_of_several_images_is_refused(tmp_path: Path, ending: str) -> None:
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / f"a.{ending}", save_all=True, append_images=[image.rotate(180)])
    with pytest.raises(ImageError, match="the file holds 2 images"):
        read_image(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_a_tiff_of_more_than_8_bits_is_refused(tmp_path: Path, mode: str) -> None:
    kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
    Image.fromarray(PIXELS[..., 0].astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="not 8-bit"):
        read_image(tmp_path / "a.tif")


def test_an_archive_that_is_called_npy(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        np.savez(stream, scan=PIXELS)
    with pytest.raises(ImageError, match=r"an \.npz archive, of scan"):
        read_image(tmp_path / "a.npy")


def test_a_large_image_is_read_without_a_warning_by_our_commands_alone(tmp_path: Path) -> None:
    """Pillow warns from 89 megapixels on, and its words don't help a user of the command line."""
    Image.new("1", (9600, 9600)).save(tmp_path / "large.png")
    code = (
        "import sys, warnings, numpy, PIL.Image; from pathlib import Path\n"
        "before = len(warnings.filters)\n"
        "from lorkd_deploy.image_files import read_image\n"
        "from lorkd_deploy.cli.shared import render\n"
        "added = warnings.filters[: len(warnings.filters) - before]\n"
        "assert all('pydicom' in str(one) for one in added), 'a host keeps its warnings'\n"
        "render.listen(); print(read_image(Path(sys.argv[1])).shape)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(9600, 9600)\n", "")


def test_one_that_announces_more_than_memory_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announced(*_: object, **__: object) -> None:
        raise MemoryError

    file = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(file)
    monkeypatch.setattr(Image, "open", announced)
    with pytest.raises(ImageError, match="not enough memory for the image") as caught:
        read_image(file)
    assert str(caught.value.where) == str(file)
