"""Grey values: stored bits, padding, modality LUT or rescale, VOI LUT or window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F64, I32
from lorkd_deploy.dicom.header import code, foreign
from lorkd_deploy.dicom.rules import DicomRules, to_write
from lorkd_deploy.dicom.stored import Layout
from lorkd_deploy.errors import ImageError

Mask = npt.NDArray[np.bool_]


def presentation(dataset: Any) -> str:
    """The presentation LUT shape, IDENTITY or INVERSE; empty where there is none."""
    with foreign():
        shape = code(dataset.get("PresentationLUTShape"))
    return shape if shape in ("IDENTITY", "INVERSE") else ""


def within_bits(values: npt.NDArray[Any], layout: Layout) -> I32:
    """The values of the stored bits alone: others may hold an overlay."""
    kept = values.astype(np.int32) & ((1 << layout.stored) - 1)
    if layout.signed:
        sign = 1 << (layout.stored - 1)
        kept = (kept ^ sign) - sign
    return kept


def padding(stored: I32, dataset: Any, layout: Layout) -> Mask:
    """Where there is no image, as the pixel padding value (up to the range limit) says."""
    with foreign():
        ends = [dataset.get(key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        numbers = [_signed(int(end), layout) for end in ends if end is not None]
    if ends[0] is None:
        return np.zeros(stored.shape, np.bool_)
    return (stored >= min(numbers)) & (stored <= max(numbers))


def _signed(value: int, layout: Layout) -> int:
    """Some files write a negative padding value as unsigned."""
    top = 1 << layout.allocated
    return value - top if layout.signed and value >= top // 2 else value


def modality_values(stored: I32, dataset: Any, layout: Layout) -> tuple[F64, float, float]:
    """The values after modality LUT or rescale, and the lowest and highest that there can be."""
    low = -(1 << (layout.stored - 1)) if layout.signed else 0
    high = low + (1 << layout.stored) - 1
    with foreign():
        tables = dataset.get("ModalityLUTSequence")
        if tables:
            values, bits = _looked_up(stored.astype(np.float64), tables[0], dataset)
            return values, 0.0, float((1 << bits) - 1)
        slope = _number(dataset.get("RescaleSlope"), 1.0)
        intercept = _number(dataset.get("RescaleIntercept"), 0.0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return np.float64(slope) * stored + intercept, ends[0], ends[1]


def shown(stored: I32, inside: Mask, dataset: Any, layout: Layout, rules: DicomRules) -> F64:
    """Values 0 … 255 by the window that the rules name, or the file's own; few may lie outside.

    `minmax` looks at what is `inside`, without padding.
    """
    values, *limits = modality_values(stored, dataset, layout)
    if isinstance(rules.window, tuple):
        return _windowed(values, *rules.window, "LINEAR")
    if rules.window == "file":
        return _by_file(values, (limits[0], limits[1]), dataset, layout, rules)
    low, high = limits
    if rules.window == "minmax":
        used = values[inside]
        if not used.size or used.min() == used.max():
            raise ImageError("all values of the image are the same: minmax has nothing to spread")
        low, high = float(used.min()), float(used.max())
    return (values - low) * (255.0 / (high - low))


def _by_file(
    values: F64, limits: tuple[float, float], dataset: Any, layout: Layout, rules: DicomRules
) -> F64:
    with foreign():
        tables = list(dataset.get("VOILUTSequence") or [])
        centers, widths = (_numbers(dataset.get(f"Window{k}")) for k in ("Center", "Width"))
        windows = list(dict.fromkeys(zip(centers, widths, strict=True)))
        function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    count = len(tables) + len(windows)
    if count == 0:
        if layout.stored == 8 and limits == (0, 255):
            return values
        raise ImageError(
            f"the file has no window, and values of {layout.stored} bits",
            fix=to_write("window", "[center, width]") + "; `full` and `minmax` are others",
        )
    if rules.view is None and count > 1:
        raise ImageError(
            f"the file has {len(tables)} VOI LUTs and {len(windows)} windows, and which one is "
            "meant isn't said",
            fix=to_write("view", "1") + f" (up to {count}, LUTs first)",
        )
    view = (rules.view or 1) - 1
    if view >= count:
        raise ImageError(
            f"view {view + 1} was asked for, and the file has {count}", fix=to_write("view", "1")
        )
    with foreign():
        if view < len(tables):
            looked, bits = _looked_up(values, tables[view], dataset)
            return looked * (255.0 / ((1 << bits) - 1))
        return _windowed(values, *windows[view - len(tables)], function)


def _windowed(values: F64, center: float, width: float, function: str) -> F64:
    """Part 3, C.11.2.1.2 and C.11.2.1.3, by pydicom, over a header that wants 0 … 255."""
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_windowing

    wanted = Dataset()
    wanted.PhotometricInterpretation = "MONOCHROME2"
    wanted.BitsStored, wanted.PixelRepresentation = 8, 0
    wanted.WindowCenter, wanted.WindowWidth = repr(center)[:16], repr(width)[:16]
    wanted.VOILUTFunction = function
    return np.asarray(apply_windowing(values, wanted), np.float64)


def _looked_up(values: F64, item: Any, dataset: Any) -> tuple[F64, int]:
    """Values through a LUT of the standard (C.11.1.1), and its bits.

    Not by pydicom's functions: with tables of 8 bits their index overflows (3.0.2).
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        data = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * entries else "u1")
    table = np.asarray(data, np.float64)[:entries]
    if len(table) != entries or not 8 <= bits <= 16:
        raise ValueError("the table is shorter than its descriptor says")
    index = np.clip(np.floor(values) - first, 0, entries - 1).astype(np.int64)
    return table[index], bits


def _numbers(value: Any) -> list[float]:
    if value is None:
        return []
    several = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return [float(one) for one in several]


def _number(value: Any, default: float) -> float:
    return default if value is None or value == "" else float(value)
