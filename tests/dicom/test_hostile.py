"""Files that are damaged, or made to do harm: a sentence, in bounded memory and time."""

from __future__ import annotations

import resource
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.dicom.header import is_dicom, patient_of
from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.dicom.syntaxes import DECODERS, NATIVE, plug_in
from lorkd_deploy.errors import ImageError, LorkdError, RuntimeUnavailableError
from tests.dicom.files import PATIENT, dataset, saved

SECONDS, BYTES = 20, 64 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(dataset(np.arange(4096).reshape(64, 64) % 256, stored=8), tmp_path / "a.dcm")


@contextmanager
def bounded() -> Iterator[None]:
    """Little memory and time, whatever the file says; peak memory of the process too."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 4 * BYTES


def refused(file: Path, what: str, rules: DicomRules | None = None) -> None:
    with bounded(), pytest.raises(ImageError, match=what) as caught:
        read_dicom(file, rules)
    assert PATIENT.split("^")[0] not in str(caught.value)
    assert caught.value.where == str(file)


def test_every_cut_of_a_file_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    assert read_dicom(file).pixels.shape == (64, 64)
    for length in [*range(0, 1200, 37), len(whole) - 1]:
        file.write_bytes(whole[:length])
        refused(file, ".")


def test_no_file_of_dicom(file: Path) -> None:
    file.write_bytes(b"\x89PNG" + bytes(200))
    refused(file, "DICM is missing")


def test_zero_pixels(file: Path) -> None:
    refused(saved(dataset(np.zeros((1, 1)), Rows=0), file), "holds no image: Rows missing or zero")


def test_no_pixels_at_all(file: Path) -> None:
    made = dataset(np.zeros((16, 16)), stored=8)
    del made.PixelData
    refused(saved(made, file), "has no pixel data")


@pytest.mark.parametrize("extra", [-2, 2, 4096])
def test_pixel_data_of_another_length(file: Path, extra: int) -> None:
    made = dataset(np.zeros((64, 64)), stored=8)
    made.PixelData = (made.PixelData + bytes(4096))[: 4096 + extra]
    refused(saved(made, file), f"has {4096 + extra} bytes, and .* make 4096")


def test_pixel_data_of_2_gb_announced(file: Path) -> None:
    whole = file.read_bytes()
    at = whole.rindex(b"\xe0\x7f\x10\x00") + 8
    file.write_bytes(whole[:at] + struct.pack("<L", 0x7FFFFFFE) + whole[at + 4 :])
    refused(file, "truncated: 2147483646 bytes announced, 4096 are there")


def test_another_element_of_2_gb_announced(file: Path) -> None:
    made = dataset(np.zeros((64, 64)), stored=8)
    made.add_new(0x00091010, "OB", b"1234")
    whole = saved(made, file).read_bytes()
    at = whole.index(b"\x09\x00\x10\x10OB") + 8
    file.write_bytes(whole[:at] + struct.pack("<L", 0x7FFFFFFE) + whole[at + 4 :])
    refused(file, ".")


@pytest.mark.parametrize(
    "element", [b"\x08\x00\x05\x00CS", b"\x02\x00\x10\x00UI", b"\x08\x00\x16\x00UI"]
)
def test_a_length_of_4_gb_where_pydicom_reads_at_once_or_opens_the_file_again(
    file: Path, element: bytes
) -> None:
    made = dataset(np.zeros((64, 64)), stored=8, SpecificCharacterSet="ISO_IR 100")
    whole = saved(made, file).read_bytes()
    at = whole.index(element)
    longer = element[:4] + b"UT\0\0" + struct.pack("<L", 0xFFFFFFF0)
    file.write_bytes(whole[:at] + longer + whole[at + 8 :])
    refused(file, ".")


def test_an_image_of_65535_times_65535_announced(file: Path) -> None:
    made = dataset(np.zeros((8, 8)), stored=8, Rows=65535, Columns=65535)
    refused(saved(made, file), "too large to be safe: 65535 × 65535 px")


def test_sequences_nested_1000_deep(file: Path) -> None:
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    sequence = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    whole = file.read_bytes()
    at = whole.index(b"\x10\x00\x10\x00PN")
    file.write_bytes(whole[:at] + (sequence + item) * 1000 + whole[at:])
    refused(file, "nested too deep|damaged")
    with bounded(), pytest.raises(ImageError, match=r"nested too deep|damaged"):
        patient_of(file)


def test_a_dicomdir(file: Path) -> None:
    made = dataset(np.zeros((8, 8)), stored=8)
    made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    made.SOPClassUID = "1.2.840.10008.1.3.10"
    refused(saved(made, file), "this is a DICOMDIR")


def test_a_deflated_file_is_read_and_a_bomb_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataset(np.arange(4096).reshape(64, 64) % 256, stored=8)
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    good = saved(made, tmp_path / "good.dcm")
    assert (read_dicom(good).pixels.ravel() == np.arange(4096) % 256).all()
    made.PixelData = bytes(8 << 20)
    bomb = saved(made, tmp_path / "bomb.dcm")
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr("lorkd_deploy.dicom.header.LARGEST_DEFLATED", 4 << 20)
    refused(bomb, "becomes larger than 512 MiB")


def compressed(frame: bytes, syntax: str, **elements: Any) -> Any:
    from pydicom.encaps import encapsulate

    made = dataset(np.zeros((16, 16)), stored=8, **elements)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    return made


def jpeg(side: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(stream, "JPEG")
    return stream.getvalue()


JPEG = "1.2.840.10008.1.2.4.50"


def test_a_compressed_image_of_another_size_than_the_header_says(file: Path) -> None:
    assert read_dicom(saved(compressed(jpeg(16), JPEG), file)).pixels.shape == (16, 16)
    refused(saved(compressed(jpeg(32), JPEG), file), "has 32 × 32 px, the header says 16 × 16")
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HH4L", 41, 0, 1 << 30, 1 << 30, 0, 0) + bytes(30)
    huge = compressed(siz + b"\xff\xd9", "1.2.840.10008.1.2.4.90")
    refused(saved(huge, file), "has 1073741824 × 1073741824 px")


def test_a_compressed_image_that_ends_early(file: Path) -> None:
    refused(saved(compressed(jpeg(16)[:-40], JPEG), file), "ends before its end marker")
    whole = saved(compressed(jpeg(16), JPEG), file).read_bytes()
    for cut in (9, 60, 300):
        file.write_bytes(whole[:-cut])
        refused(file, "truncated")
    three = saved(compressed(jpeg(16), JPEG, NumberOfFrames=3), file)
    refused(three, "has 3 frames, .* data of 1", DicomRules(frame=1))


def test_random_damage_is_a_sentence_or_pixels(file: Path) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        bytes_ = bytearray(whole)
        for at in rng.integers(132, 1100, 8):
            bytes_[at] = rng.integers(0, 256)
        file.write_bytes(bytes_)
        try:
            read_dicom(file)
        except LorkdError as exc:
            assert PATIENT.split("^")[0] not in str(exc)


def test_every_transfer_syntax_of_the_standard_is_read_or_refused_by_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pydicom._uid_dict import UID_dictionary

    syntaxes = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"]
    assert len(syntaxes) > 50
    for uid in syntaxes:
        if uid in NATIVE or uid in DECODERS:
            plug_in(uid)
            continue
        with pytest.raises(ImageError, match="is not read") as caught:
            plug_in(uid)
        assert caught.value.fix
    monkeypatch.setattr("lorkd_deploy.dicom.syntaxes.find_spec", lambda name: None)
    for uid, (_, module) in DECODERS.items():
        if module in ("PIL", "pydicom"):
            continue
        with pytest.raises(RuntimeUnavailableError, match="which is not installed") as absent:
            plug_in(uid)
        assert absent.value.fix


def test_a_dicom_file_is_known_without_its_ending(file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "IM000001"
    bare.write_bytes(file.read_bytes())
    assert is_dicom(bare)
    (tmp_path / "text").write_text("no image")
    assert not is_dicom(tmp_path / "text")
