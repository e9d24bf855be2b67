from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.errors import ImageError
from tests.dicom.files import dataset, lut, real_file, saved
from tests.dicom.oracle import REAL, by_dcmtk

RAMP = np.arange(4096).reshape(64, 64)


def shown(tmp_path: Path, made: Any, **rules: Any) -> Any:
    return read_dicom(saved(made, tmp_path / "a.dcm"), DicomRules(**rules)).pixels.astype(int)


def linear(values: Any, center: float, width: float) -> Any:
    """Part 3, C.11.2.1.2.1, written out once more."""
    y = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.floor(np.clip(y, 0, 255) + 0.5).astype(int)


def test_the_files_own_window_after_rescale(tmp_path: Path) -> None:
    made = dataset(RAMP, RescaleSlope="2", RescaleIntercept="-1024")
    made.WindowCenter, made.WindowWidth = "40", "400"
    expected = linear(RAMP * 2.0 - 1024, 40, 400)
    assert 0 < expected.mean() < 255
    assert (shown(tmp_path, made) == expected).all()


def test_a_window_of_the_recipe_is_used_instead(tmp_path: Path) -> None:
    made = dataset(RAMP - 2048, signed=True, WindowCenter="1", WindowWidth="2")
    assert (shown(tmp_path, made, window=(100, 1000)) == linear(RAMP - 2048, 100, 1000)).all()


def test_full_and_minmax(tmp_path: Path) -> None:
    half = RAMP // 2 + 100
    full = np.floor(half / 4095 * 255 + 0.5)
    assert (shown(tmp_path, dataset(half), window="full") == full).all()
    spread = np.floor((half - 100) / 2047 * 255 + 0.5)
    assert (shown(tmp_path, dataset(half), window="minmax") == spread).all()


def test_monochrome1_is_inverted_and_padding_is_black(tmp_path: Path) -> None:
    values = RAMP.copy()
    values[:8] = 4000
    made = dataset(values, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4000)
    made.WindowCenter, made.WindowWidth = "2048", "4096"
    expected = 255 - linear(values, 2048, 4096)
    expected[values == 4000] = 0
    assert (shown(tmp_path, made) == expected).all()


def test_a_range_of_padding_stays_out_of_minmax(tmp_path: Path) -> None:
    values = RAMP % 1000 + 500
    values[0] = -2000
    values[1] = -1990
    made = dataset(values, stored=16, signed=True)
    made.add_new("PixelPaddingValue", "SS", -2000)
    made.add_new("PixelPaddingRangeLimit", "SS", -1980)
    got = shown(tmp_path, made, window="minmax")
    assert got[:2].max() == 0
    assert (got[2:] == np.floor((values[2:] - 500) / 999 * 255 + 0.5)).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_and_modality_luts(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    table = np.linspace(top, 0, 1000).astype(int)  # a falling one
    made = dataset(RAMP, VOILUTSequence=[lut(table, 500, bits)])
    picked = table[np.clip(RAMP - 500, 0, 999)]
    assert (shown(tmp_path, made) == np.floor(picked / top * 255 + 0.5)).all()
    made = dataset(RAMP, ModalityLUTSequence=[lut(table, 500, bits)])
    assert (shown(tmp_path, made, window="full") == np.floor(picked / top * 255 + 0.5)).all()


def test_bits_above_those_stored_are_no_pixels(tmp_path: Path) -> None:
    made = dataset(RAMP, WindowCenter="2048", WindowWidth="4096")
    overlaid = (RAMP | 0x8000).astype("<u2")
    made.PixelData = overlaid.tobytes()
    assert (shown(tmp_path, made) == linear(RAMP, 2048, 4096)).all()


def test_eight_bits_without_a_window_are_taken_as_they_are(tmp_path: Path) -> None:
    assert (shown(tmp_path, dataset(RAMP % 256, stored=8)) == RAMP % 256).all()


def test_colours_as_they_are(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    assert (shown(tmp_path, dataset(rgb, stored=8)) == rgb).all()


def test_which_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16), value) for value in (10, 20, 30, 40)])
    made = dataset(frames, stored=8)
    with pytest.raises(ImageError, match="has 4 frames") as caught:
        shown(tmp_path, made)
    assert "write frame: 2 into the task's data.dicom" in str(caught.value.fix)
    assert shown(tmp_path, made, frame=4).max() == 40
    assert shown(tmp_path, made, frame="middle").max() == 20
    with pytest.raises(ImageError, match="frame 5 was asked for, and the file has 4"):
        shown(tmp_path, made, frame=5)


@pytest.mark.parametrize(
    ("elements", "rules", "what", "fix"),
    [
        ({}, {}, "no window, and values of 12 bits", "window: [center, width]"),
        (
            {"WindowCenter": ["1", "2"], "WindowWidth": ["3", "4"]},
            {},
            "0 VOI LUTs and 2 windows",
            "view: 1",
        ),
        (
            {},
            {"modality": ["MR"]},
            "the modality is CT, this task answers MR",
            "modality: [MR, CT]",
        ),
        ({"BodyPartExamined": "CHEST"}, {"body_part": ["HEAD"]}, "is not HEAD", "leave body_part"),
        ({}, {"body_part": ["HEAD"]}, "not HEAD, or not named", "leave body_part out"),
        (
            {},
            {"photometric": ["RGB"]},
            "is MONOCHROME2, this task takes RGB",
            "photometric: [MONOCHROME2]",
        ),
        ({"PresentationLUTShape": "INVERSE"}, {}, "they contradict each other", "corrected"),
        ({"PhotometricInterpretation": "HSV"}, {}, "is HSV, this task takes MONO", "archive"),
        ({"BitsAllocated": 32}, {}, "such pixels are not read", "8 or 16"),
    ],
)
def test_what_is_ambiguous_or_unexpected_is_refused(
    tmp_path: Path, elements: Any, rules: Any, what: str, fix: str
) -> None:
    with pytest.raises(ImageError) as caught:
        shown(tmp_path, dataset(RAMP, **elements), **rules)
    assert what in caught.value.what
    assert caught.value.fix is not None
    assert fix in caught.value.fix
    assert caught.value.where == str(tmp_path / "a.dcm")


def test_the_header_that_is_kept(tmp_path: Path) -> None:
    made = dataset(RAMP % 256, stored=8, Modality="not a code: Plantedname")
    image = read_dicom(saved(made, tmp_path / "a.dcm"))
    assert image.header.model_dump() == {
        "sop_class_uid": str(made.SOPClassUID),
        "sop_instance_uid": str(made.SOPInstanceUID),
        "modality": "unknown",
        "photometric": "MONOCHROME2",
        "rows": 64,
        "columns": 64,
    }


@pytest.mark.parametrize("name", REAL)
def test_real_pixels_against_gdcm_and_dcmtk(name: str, tmp_path: Path, dcmtk: None) -> None:
    decoder, rules, words, most = REAL[name]
    pixels = read_dicom(real_file(name), DicomRules(**rules)).pixels.astype(int)
    oracle = by_dcmtk(real_file(name), decoder, tmp_path, *words)
    assert oracle.shape == pixels.shape
    assert np.abs(oracle - pixels).max() <= most
    assert pixels.min() != pixels.max()


REFUSED = {
    "CT_small": "the file has no window, and values of 16 bits",
    "JPGExtended": "the file has no window, and values of 12 bits",
    "MR_truncated": "the pixel data is truncated: 8192 bytes announced, 8130 are there",
    "OBXXXX1A_rle_2frame": "the file has 2 frames",
    "emri_small_RLE": "the file has 10 frames",
    "emri_small_jpeg_ls_lossless": "the file has 10 frames",
    "examples_overlay": "the file has 0 VOI LUTs and 2 windows",
    "examples_ybr_color": "the file has 30 frames",
    "mlut_18": "the file has no window, and values of 12 bits",
}


@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_leave_a_choice_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match=REFUSED[name]):
        read_dicom(real_file(name))
