"""Image files: which ones a folder holds, and their pixels. The same for training and predict.

DICOM files are among them where the caller says so: their pixels take rules (`dicom/rules.py`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import NoReturn

import numpy as np
from PIL import Image, ImageFile

from lorkd_deploy.arrays import U8
from lorkd_deploy.dicom import is_dicom
from lorkd_deploy.errors import ImageError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IN_WORDS = "PNG, JPEG, BMP, TIFF or WebP"
# What NumPy raises for a damaged array: its header is read as Python source.
NUMPY_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, struct.error,
                TokenError)  # fmt: skip
_DAMAGE = (*NUMPY_DAMAGE, KeyError, IndexError)  # and Pillow for an image, by its format
_FIRST_BYTES = (  # of a file, and what it then is
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II", "TIFF"),
    (b"MM", "TIFF"),
    (b"RIFF", "WebP"),
    (b"\x93NUMPY", "NumPy"),
)
KINDS = ("unknown", *dict.fromkeys(kind for _, kind in _FIRST_BYTES), "DICOM")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class Found:
    """The image files of a folder, and what was left out, by reason."""

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, why: str, *paths: Path) -> None:
        self.left_out.setdefault(why, []).extend(paths)

    def leave_out_too(self, other: Found) -> None:
        """What `other` left out."""
        for why, paths in other.left_out.items():
            self.leave_out(why, *paths)

    @property
    def counts(self) -> dict[str, int]:
        """How many were left out, by reason."""
        return {why: len(paths) for why, paths in sorted(self.left_out.items())}

    @property
    def in_words(self) -> str:
        """What was left out, in one line that names the first of each reason."""
        total = sum(self.counts.values())
        parts = [
            f"{count} × {why}, {printable(self.left_out[why][0].name)}"
            for why, count in self.counts.items()
        ]
        return f"{total} {'file' if total == 1 else 'files'} left out: {'; '.join(parts)}"


def image_files(folder: Path, suffixes: Sequence[str] = SUFFIXES, *, dicom: bool = False) -> Found:
    """The files below `folder`, in all levels and through links, in the order of their paths.

    A name that starts with a dot is hidden, or a file manager's (macOS writes `._image.png`).
    With `dicom` DICOM files are images too, whatever their names: scanners give them no ending.
    Raises `ImageError` for an image whose name isn't UTF-8.
    """
    found = Found()
    for path in _walk(folder, found):
        if path.name.startswith("."):
            if path.suffix.lower() in suffixes:
                found.leave_out("hidden", path)
        elif path.is_symlink() and not path.exists():
            found.leave_out("broken link", path)
        elif dicom and path.name.upper() == "DICOMDIR":
            found.leave_out("a medium's list of files", path)
        elif path.suffix.lower() not in suffixes and not (dicom and is_dicom(path)):
            ending = printable(path.suffix.lower()) or "no ending"
            found.leave_out(f"no image ({ending})", path)
        elif not path.is_file():
            found.leave_out("no regular file", path)
        else:
            require_utf8(path)
            found.files.append(path)
    found.files.sort(key=lambda path: path.relative_to(folder).parts)
    return found


def _walk(folder: Path, found: Found) -> Iterator[Path]:
    """All files outside hidden folders; a folder to which several links lead is read once."""
    seen = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            found.leave_out("link to a folder that was read already", Path(place))
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            require_utf8(Path(place, name))
        yield from (Path(place, name) for name in files)


def _raise(error: OSError) -> NoReturn:
    raise error


def require_utf8(path: Path) -> None:
    """Raise `ImageError` for a path that isn't UTF-8: no record could hold its name."""
    if printable(str(path)) != str(path):
        raise ImageError(
            "the name is not UTF-8",
            where=printable(str(path)),
            fix="rename it, for example by `convmv -f latin1 -t utf8 --notest PATH`",
        )


def printable(name: str) -> str:
    """A name of the file system, with the bytes that aren't UTF-8 as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def kind_of(path: Path) -> str:
    """Which of `KINDS` a file is by its first bytes, whatever its name says."""
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError:
        return "unknown"
    found = next((kind for first, kind in _FIRST_BYTES if head.startswith(first)), None)
    return found or ("DICOM" if is_dicom(path) else "unknown")


def read_image(path: Path) -> U8:
    """One image file of `FORMATS`, or `.npy`, as uint8 `(H, W)` or `(H, W, 3)`.

    It stands as a viewer shows it: the orientation that its EXIF data names is applied. Raises
    `ImageError` for a file that is no image or holds several, for 16-bit values (no window is
    defined for them) and for transparent pixels (what lies behind them is unknown).
    """
    try:
        if path.suffix.lower() == ".npy":
            return _array(path)
        with Image.open(path, formats=FORMATS) as image:
            _refuse_16_bit(image, path)
            _refuse_several(image, path)
            image.load()
            return _as_array(_upright(image), path)
    except FileNotFoundError:
        raise ImageError(
            "the image does not exist", where=path, fix="check the path for a misspelling"
        ) from None
    except _DAMAGE as exc:
        raise ImageError(
            f"the file can't be read as an image: {exc}",
            where=path,
            fix=f"give a {IN_WORDS} file, or a NumPy .npy file",
        ) from exc
    except MemoryError as exc:  # a damaged file, too, may announce more than there is
        raise ImageError(
            "there is not enough memory for the image",
            where=path,
            fix="look at it in a viewer; end other programs, or make it smaller",
        ) from exc
    except Image.DecompressionBombError as exc:
        raise ImageError(
            f"the image is too large to be safe: {exc}",
            where=path,
            fix="cut it into parts, or make it smaller",
        ) from exc


def _array(path: Path) -> U8:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        names = ", ".join(loaded.files[:5])
        loaded.close()
        raise ImageError(
            f"the file is no .npy but an .npz archive, of {names}",
            where=path,
            fix="save one image by numpy.save",
        )
    return loaded


def _refuse_16_bit(image: ImageFile.ImageFile, path: Path) -> None:
    """Before the pixels are read: of 16-bit colour Pillow would quietly keep the upper 8 bits."""
    raw = " ".join(str(tile[3]) for tile in image.tile)  # how the file stores them: "RGB;16B"
    packed = "BGR;16" in raw  # a BMP's three colours in two bytes
    if (";16" in raw and not packed) or image.mode.startswith(("I", "F")):
        raise ImageError(
            f"the image is not 8-bit (Pillow mode {raw or image.mode})",
            where=path,
            fix="map it to 8 bits with the window that the training images had",
        )


def _refuse_several(image: ImageFile.ImageFile, path: Path) -> None:
    """Pages and frames. What a camera's JPEG holds beside its picture is a preview of it."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise ImageError(
            f"the file holds {count} images",
            where=path,
            fix="save each as a file of its own",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError, struct.error):
        return image  # EXIF data that can't be read turns no image
    turned = _TURNED.get(orientation) if isinstance(orientation, int) else None
    return image if turned is None else image.transpose(turned)


def _as_array(image: Image.Image, path: Path) -> U8:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            raise ImageError(
                "the image has transparent pixels",
                where=path,
                fix="save it without an alpha channel",
            )
        return np.ascontiguousarray(rgba[..., :3])
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))
