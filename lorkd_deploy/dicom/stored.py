"""One frame's stored values, decoded after the file was seen to hold what it announces."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import numpy.typing as npt

from lorkd_deploy.dicom.header import FRESH_COPY, foreign
from lorkd_deploy.dicom.syntaxes import EXTENDED, NATIVE, RLE, plug_in
from lorkd_deploy.errors import ImageError

LARGEST = 178_956_970  # pixels of a frame, as of an image file: Pillow's limit
UNDEFINED = 0xFFFFFFFF
_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
# Where the markers of JPEG and JPEG-LS say the size: SOF0 … SOF15 but for DHT, JPG and DAC; SOF55.
_FRAME_STARTS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Layout:
    """What the header says of the pixels."""

    syntax: str
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int  # bits
    stored: int  # bits
    signed: bool
    photometric: str

    @property
    def native_bytes(self) -> int:
        """Bytes of all frames, uncompressed."""
        pixels = self.rows * self.columns * self.frames
        if self.photometric == "YBR_FULL_422":
            return pixels * 2 * self.allocated // 8
        return -(-pixels * self.samples * self.allocated // 8)


def layout_of(dataset: Any) -> Layout:
    """Read and check the elements that say how pixels are stored."""
    with foreign():
        found = Layout(
            syntax=str(dataset.file_meta.TransferSyntaxUID),
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            samples=int(dataset.SamplesPerPixel),
            frames=int(dataset.get("NumberOfFrames") or 1),
            allocated=int(dataset.BitsAllocated),
            stored=int(dataset.BitsStored),
            signed=int(dataset.PixelRepresentation) == 1,
            photometric=str(dataset.PhotometricInterpretation),
        )
        high = int(dataset.HighBit)
    if found.rows * found.columns > LARGEST:
        raise ImageError(
            f"the image is too large to be safe: {found.columns} × {found.rows} px",
            fix="cut it into parts, or make it smaller",
        )
    right = (
        min(found.rows, found.columns, found.frames) > 0
        and found.allocated in (8, 16)
        and 0 < found.stored <= found.allocated
        and found.samples in (1, 3)
    )
    if not right or high != found.stored - 1:
        raise ImageError(
            f"{found.stored} of {found.allocated} bits up to bit {high}, {found.samples} samples "
            "a pixel: such pixels are not read",
            fix="8 or 16 bits allocated, one grey value or three colours a pixel are read",
        )
    return found


def decoded(stream: BinaryIO, layout: Layout, frame: int) -> npt.NDArray[Any]:
    """The stored values of a frame (from 0): `(H, W)`, or RGB `(H, W, 3)`.

    `stream` stands at the pixel data. Raises `ImageError` where it is shorter or longer than the
    header says, or is damaged; `RuntimeUnavailableError` without the plug-in that decodes it.
    """
    from pydicom.pixels.utils import pixel_array

    plugin = plug_in(layout.syntax)
    _check(stream, layout)
    if layout.syntax == EXTENDED and layout.stored > 8:
        plugin = _twelve_bits()
    with foreign():
        values: npt.NDArray[Any] = pixel_array(stream, index=frame, decoding_plugin=plugin)
    shape = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    if values.shape != shape:
        raise ImageError(
            f"the pixels have shape {values.shape}, the header says {shape}", fix=FRESH_COPY
        )
    return values


@cache
def _twelve_bits() -> str:
    """The name of the plug-in in `jpeg12.py`, once pydicom knows it."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    get_decoder(UID(EXTENDED)).add_plugin("lorkd", ("lorkd_deploy.dicom.jpeg12", "decode_frame"))
    return "lorkd"


def _check(stream: BinaryIO, layout: Layout) -> None:
    big = layout.syntax == "1.2.840.10008.1.2.2"
    order = ">" if big else "<"
    start = stream.read(8)
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4]) != (0x7FE0, 0x0010):
        raise ImageError("the DICOM file has no pixel data", fix=FRESH_COPY)
    if layout.syntax == "1.2.840.10008.1.2":
        length = struct.unpack("<L", start[4:])[0]
    else:
        length = struct.unpack(f"{order}L", stream.read(4).ljust(4, b"\0"))[0]
    here = stream.tell()
    left = stream.seek(0, os.SEEK_END) - here
    stream.seek(here)
    if layout.syntax in NATIVE:
        _native(length, left, layout)
    elif length != UNDEFINED:
        raise ImageError("compressed pixel data has a length, which is undefined", fix=FRESH_COPY)
    else:
        _encapsulated(stream, here + left, layout)


def _native(announced: int, left: int, layout: Layout) -> None:
    wanted = layout.native_bytes
    if announced > left:
        raise ImageError(
            f"the pixel data is truncated: {announced} bytes announced, {left} are there",
            fix=FRESH_COPY,
        )
    if announced not in (wanted, wanted + wanted % 2):
        raise ImageError(
            f"the pixel data has {announced} bytes, and rows, columns, bits and frames of the "
            f"header make {wanted}",
            fix=FRESH_COPY,
        )


def _encapsulated(stream: BinaryIO, end: int, layout: Layout) -> None:
    """Walk over the fragments: whole, as many as frames, and of the header's size inside."""
    fragments: list[tuple[int, int]] = []
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise ImageError("the compressed pixel data is truncated", fix=FRESH_COPY)
        *tag, length = struct.unpack("<HHL", head)
        if tuple(tag) == _END:
            break
        start = stream.tell()
        if tuple(tag) != _ITEM or start + length > end:
            raise ImageError("the compressed pixel data is truncated or damaged", fix=FRESH_COPY)
        fragments.append((start, length))
        stream.seek(start + length)
    fragments = [found for found in fragments[1:] if found[1]]  # the first is a table of offsets
    if len(fragments) < layout.frames:
        raise ImageError(
            f"the file has {layout.frames} frames, and compressed data of {len(fragments)}",
            fix=FRESH_COPY,
        )
    if layout.syntax == RLE:
        return
    each = len(fragments) == layout.frames
    for number, (start, length) in enumerate(fragments):
        if each or number == 0:
            _same_size(stream, start, length, layout)
        if each or number == len(fragments) - 1:
            stream.seek(start + max(0, length - 16))
            if not stream.read(min(length, 16)).rstrip(b"\0\xff").endswith(b"\xff\xd9"):
                raise ImageError(
                    "the compressed image ends before its end marker: it is truncated",
                    fix=FRESH_COPY,
                )


def _same_size(stream: BinaryIO, start: int, length: int, layout: Layout) -> None:
    """The size that the compressed image itself announces: decoders take memory for that one."""
    stream.seek(start)
    size = _announced(stream, start + length)
    if size != (layout.rows, layout.columns):
        raise ImageError(
            "the compressed image is damaged"
            if size is None
            else f"the compressed image has {size[1]} × {size[0]} px, the header says "
            f"{layout.columns} × {layout.rows}",
            fix=FRESH_COPY,
        )


def _announced(stream: BinaryIO, end: int) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 codestream."""
    first = stream.read(4)
    if first == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        siz = stream.read(20)
        if len(siz) < 20:
            return None
        width, height, left, top = struct.unpack(">4L", siz[4:])
        return height - top, width - left
    if first[:2] != b"\xff\xd8":
        return None
    stream.seek(-2, os.SEEK_CUR)
    while stream.tell() < end - 8:
        mark, kind = stream.read(2)
        while kind == 0xFF:  # fill bytes
            kind = stream.read(1)[0]
        (size,) = struct.unpack(">H", stream.read(2))
        if mark != 0xFF or size < 2:
            return None
        if kind in _FRAME_STARTS:
            _, rows, columns = struct.unpack(">BHH", stream.read(5))
            return rows, columns
        stream.seek(size - 2, os.SEEK_CUR)
    return None
