"""The way of a DICOM file's values to 8 bits, as `DicomRules` define it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import U8
from lorkd_deploy.dicom import grey
from lorkd_deploy.dicom.header import DicomHeader, code, foreign, opened, read_header, record_of
from lorkd_deploy.dicom.rules import COLOUR, GREY, DicomRules, to_write
from lorkd_deploy.dicom.stored import Layout, decoded, layout_of
from lorkd_deploy.errors import ImageError, LorkdError


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One frame: `pixels` uint8 `(H, W)` or RGB `(H, W, 3)`; `frame` is its number, from 1."""

    pixels: U8
    header: DicomHeader
    frame: int


def read_dicom(path: Path, rules: DicomRules | None = None) -> DicomImage:
    """The frame of a DICOM file that `rules` choose, as 8-bit pixels.

    Raises `ImageError` for a file that is damaged, leaves a choice that the rules don't make, or
    isn't what they expect; `RuntimeUnavailableError` for a decoder that isn't installed. Neither
    quotes more of the header than `DicomHeader` has, and numbers of the pixels' format.
    """
    rules = rules or DicomRules()
    try:
        with opened(path) as stream:
            dataset = read_header(stream)
            header = record_of(dataset)
            layout = layout_of(dataset)
            _expected(dataset, header, rules)
            index = _frame(layout, rules)
            values = decoded(stream, layout, index)
        if layout.photometric in GREY:
            pixels = _grey(values, _of_frame(dataset, index), layout, rules)
        else:
            pixels = _colour(values, dataset, layout)
        return DicomImage(pixels, header, index + 1)
    except FileNotFoundError:
        raise ImageError(
            "the image does not exist", where=path, fix="check the path for a misspelling"
        ) from None
    except LorkdError as exc:
        raise type(exc)(exc.what, where=path, fix=exc.fix) from exc


def _expected(dataset: Any, header: DicomHeader, rules: DicomRules) -> None:
    if rules.modality and header.modality not in rules.modality:
        raise ImageError(
            f"the modality is {header.modality}, this task answers {', '.join(rules.modality)}",
            fix="give it to the task that is meant for it; "
            + to_write("modality", f"[{', '.join([*rules.modality, header.modality])}]")
            + " if this one is",
        )
    with foreign():
        part = code(dataset.get("BodyPartExamined"))
    if rules.body_part and part not in rules.body_part:
        raise ImageError(
            f"the body part examined is not {' or '.join(rules.body_part)}, or not named",
            fix="give it to the task that is meant for it, or leave body_part out of data.dicom",
        )
    allowed = rules.photometric or (*GREY, *COLOUR)
    if header.photometric not in allowed:
        raise ImageError(
            f"the photometric interpretation is {header.photometric}, "
            f"this task takes {', '.join(allowed)}",
            fix=to_write("photometric", f"[{header.photometric}]")
            if header.photometric in (*GREY, *COLOUR)
            else "have the archive send it in another one",
        )


def _frame(layout: Layout, rules: DicomRules) -> int:
    if rules.frame is None:
        if layout.frames > 1:
            raise ImageError(
                f"the file has {layout.frames} frames, and which one is meant isn't said",
                fix=to_write("frame", str((layout.frames + 1) // 2)),
            )
        return 0
    number = (layout.frames + 1) // 2 if rules.frame == "middle" else rules.frame
    if number > layout.frames:
        raise ImageError(
            f"frame {number} was asked for, and the file has {layout.frames}",
            fix=to_write("frame", "middle"),
        )
    return number - 1


def _of_frame(dataset: Any, index: int) -> Any:
    """The dataset with what its functional groups say of a frame, as enhanced images have it."""
    from pydicom.dataset import Dataset

    merged = Dataset()
    with foreign():
        merged.update(dataset)
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        own = dataset.get("PerFrameFunctionalGroupsSequence") or []
        for group in [*shared[:1], *own[index : index + 1]]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (group.get(name) or [])[:1]:
                    merged.update(item)
        merged.file_meta = dataset.file_meta
        merged.set_original_encoding(*dataset.original_encoding)
    return merged


def _grey(stored: npt.NDArray[Any], dataset: Any, layout: Layout, rules: DicomRules) -> U8:
    shape = grey.presentation(dataset)
    inverted = layout.photometric == "MONOCHROME1"
    if shape and (shape == "INVERSE") != inverted:
        raise ImageError(
            f"the photometric interpretation is {layout.photometric}, and the presentation LUT "
            f"shape {shape}: they contradict each other",
            fix="ask whoever runs the modality which is right, and send a corrected file",
        )
    stored = grey.within_bits(stored, layout)
    padding = grey.padding(stored, dataset, layout)
    shown = grey.shown(stored, ~padding, dataset, layout, rules)
    eight = np.floor(np.clip(shown, 0, 255) + 0.5).astype(np.uint8)
    if inverted:
        eight = 255 - eight
    eight[padding] = 0
    return eight


def _colour(values: npt.NDArray[Any], dataset: Any, layout: Layout) -> U8:
    if layout.photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        with foreign():
            values = apply_color_lut(values, dataset)
            if values.dtype.itemsize > 1:
                bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
                values = values >> (bits - 8)
    elif layout.stored != 8 or layout.signed:
        raise ImageError(
            f"the colours have {layout.stored} bits, 8 are read",
            fix="have the archive send it with 8 bits a colour",
        )
    if values.ndim != 3 or values.shape[2] < 3 or int(values.max(initial=0)) > 255:
        raise ImageError("the colours of the DICOM file are not 8-bit RGB")
    return np.ascontiguousarray(values[..., :3].astype(np.uint8))
