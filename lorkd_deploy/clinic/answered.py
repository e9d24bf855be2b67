"""One answer with all that a report says of it: the engine, and the source image's header."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from lorkd_deploy._version import __version__
from lorkd_deploy.deploy.answers.classifier import Prediction
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.dicom.header import UID, foreign, opened, read_header
from lorkd_deploy.errors import ImageError
from lorkd_deploy.storage import canonical_json, sha256_bytes

SCHEME = "99LORKD"  # of codes for classes: the standard reserves 99… for private ones
NOTICE = "Not a medical device: research use"
_TEXT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID",
         "AccessionNumber", "ReferringPhysicianName", "StudyDate", "StudyTime")  # fmt: skip
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, for UIDs that are made of a hash


@dataclass(frozen=True, eq=False)
class Answered:
    """A `prediction` on the DICOM image whose header `source` is, by the engine `artifact`."""

    prediction: Prediction
    artifact: Artifact
    rules: DicomRules
    source: Any
    at: datetime

    @cached_property
    def engine_sha256(self) -> str:
        """Of all files of the engine, its preprocessing and the rules for DICOM's pixels."""
        files = [file.sha256 for file in self.artifact.files]
        return sha256_bytes(
            canonical_json([files, self.artifact.preprocess_sha256, self.rules.sha256])
        )

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return f"lorkd-deploy {self.artifact.name}"

    @property
    def version(self) -> str:
        """The algorithm's version: of the program and of the bundle."""
        return f"{__version__}+{self.artifact.bundle_sha256[:12]}"

    @property
    def positive(self) -> tuple[str, ...]:
        """The classes that the answer names."""
        if self.prediction.outcome != "answered":
            return ()
        task = self.artifact.task(self.prediction.task)
        if task.kind == "multilabel":
            return tuple(c for c, p in self.prediction.probabilities.items() if p >= 0.5)
        return (self.prediction.label,)

    def uid(self, what: str) -> str:
        """A UID for a part of this answer: the same image and engine have the same one again."""
        seed = [what, str(self.source.SOPInstanceUID), self.prediction.frame, self.engine_sha256]
        return _uid(seed)

    @property
    def series_uid(self) -> str:
        """The series of all answers of this engine in the study."""
        return _uid(["series", str(self.source.StudyInstanceUID), self.engine_sha256])

    def code_of(self, name: str) -> tuple[str, str, str]:
        """Value, scheme and meaning of a class in private codes."""
        value = sha256_bytes(f"{self.prediction.task}/{name}".encode())[:12]
        return value, SCHEME, name[:64]


def answered(prediction: Prediction, artifact: Artifact, rules: DicomRules) -> Answered:
    """Read the header of the file that `prediction` is about.

    Raises `ImageError` for a file that is no DICOM, or lacks what a report has to name.
    """
    path = Path(prediction.file)
    if prediction.dicom is None:
        raise ImageError(
            "a report names the patient and study of a DICOM file, and this is none",
            where=path,
            fix="give DICOM files, or leave --sr and --fhir out",
        )
    with opened(path) as stream:
        source = read_header(stream)
        with foreign():
            missing = [name for name in (*_UIDS, "Modality") if not source.get(name)]
            for name in _TEXT:
                if name not in source:
                    setattr(source, name, "")
            present = [name for name in _UIDS if name not in missing]
            wrong = [name for name in present if not UID.match(str(source[name].value))]
    if missing or wrong:
        raise ImageError(
            f"the DICOM file has no valid {' or '.join(missing or wrong)}, which a report names",
            where=path,
            fix="send the file from the archive again",
        )
    return Answered(prediction, artifact, rules, source, datetime.now(timezone.utc))


def _uid(seed: list[Any]) -> str:
    number = int(sha256_bytes(canonical_json(seed))[:28], 16)
    return f"{_ROOT}{number}"
