"""DICOM files for tests: made here, and the 21 real ones where `LORKD_DICOM` names their folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LORKD_DICOM", ROOT.parent / "shared" / "dicom"))
PATIENT = "Plantedname^Zacharias"
STUDY = "1.2.826.0.1.3680043.8.498.111"


def real_file(name: str) -> Path:
    """One of the 21 real files; skips the test where they are not on this machine."""
    file = REAL / f"{name}.dcm"
    if not file.is_file():
        pytest.skip(f"no {name}.dcm in {REAL}: set LORKD_DICOM to the folder of the real files")
    return file


def dataset(pixels: Any, *, stored: int = 12, signed: bool = False, **elements: Any) -> FileDataset:
    """A CT image of `pixels` `(H, W)`, `(N, H, W)` or `(H, W, 3)` with everything of a patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, f"{STUDY}.1"
    made.PatientName, made.PatientID = PATIENT, "PLANTED-ID-77"
    made.PatientBirthDate, made.PatientSex = "19501231", "O"
    made.StudyDate, made.StudyTime, made.StudyID = "20260102", "030405", "PLANTED-STUDY"
    made.AccessionNumber, made.ReferringPhysicianName = "PLANTED-ACC", "Plantedref^Doctor"
    made.StudyDescription = "Plantedname says"
    made.Modality, made.Manufacturer = "CT", "Made"
    made.SeriesNumber, made.InstanceNumber = 1, 1
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == 3 and not colour else 1
    made.Rows, made.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if frames > 1:
        made.NumberOfFrames = frames
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 if stored <= 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = stored, stored - 1, int(signed)
    kind = "u1" if stored <= 8 else "<i2" if signed else "<u2"
    made.PixelData = np.ascontiguousarray(pixels).astype(kind).tobytes()
    for key, value in elements.items():
        setattr(made, key, value)
    return made


def saved(made: FileDataset, file: Path) -> Path:
    """Write `made` to `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)
    return file


def lut(entries: Any, first: int, bits: int) -> Dataset:
    """One item of a LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(value) for value in entries])
    return item
