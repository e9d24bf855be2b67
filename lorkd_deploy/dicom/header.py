"""A DICOM file's header, read with bounded memory, and the little of it that records may hold."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from lorkd_deploy.dicom.syntaxes import DEFLATED
from lorkd_deploy.errors import ImageError, LorkdError
from lorkd_deploy.schema import Part

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

SUFFIXES = (".dcm", ".dicom", ".ima")
MAGIC = 128, b"DICM"
DICOMDIR = "1.2.840.10008.1.3.10"
LARGEST_ELEMENT = "1 MB"  # a longer one stays in the file; tables of a palette take 128 kB
LARGEST_DEFLATED = 1 << 29  # bytes; what a deflated file may become in memory
FRESH_COPY = "get a fresh copy from the archive"
UID = re.compile(r"^[0-9.]{1,64}$")
_CODE = re.compile(r"^[A-Z0-9 _]{1,16}$")
# What pydicom warns of quotes the header, with the patient in it.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


class DicomHeader(Part):
    """All that logs, CSV, JSON and records take of a header: no other element ever gets there.

    `modality` and `photometric` are `unknown` where the file has no valid code in their place.
    """

    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    photometric: str
    rows: int
    columns: int


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM file, by its name or by its first 132 bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():  # opening a pipe would wait for its other end
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(MAGIC[0])
            return stream.read(len(MAGIC[1])) == MAGIC[1]
    except OSError:
        return False


@contextmanager
def foreign() -> Iterator[None]:
    """What pydicom and decoders raise over a damaged file, as one sentence.

    Their own messages and warnings quote the header, so they are never shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (LorkdError, MemoryError, ModuleNotFoundError):
        raise
    except OSError as exc:
        if exc.errno is not None:  # the disk's or the network's fault
            raise
        raise ImageError("the DICOM file is damaged", fix=FRESH_COPY) from exc
    except RecursionError as exc:
        raise ImageError(
            "the DICOM header is nested too deep", fix="such files are made to do harm: remove it"
        ) from exc
    except Exception as exc:  # a hostile file makes them raise nearly everything
        raise ImageError(
            f"the DICOM file is damaged ({type(exc).__name__} in reading it)", fix=FRESH_COPY
        ) from exc


class _Bounded(io.BufferedReader):
    """A file of which never more is asked than it has: else memory is taken for what a damaged
    length announces, up to 4 GB.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 0:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _bounded(path: str | Path, mode: Literal["rb"] = "rb") -> BinaryIO:
    return _Bounded(Path(path).open(mode, buffering=0))


def _behind_the_meta_group(tag: int, *_: object) -> bool:
    return tag >> 16 != 2


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A DICOM file as a stream that isn't deflated; raises `ImageError` for another kind of file.

    pydicom would unpack a deflated one whole, however large it becomes; here it is bounded.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.errors import InvalidDicomError
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.filewriter import write_file_meta_info

    with _bounded(path) as stream:
        with foreign():
            try:
                read_preamble(stream, force=False)
            except InvalidDicomError as exc:
                raise ImageError(
                    "the file is no DICOM file: DICM is missing behind its first 128 bytes",
                    fix=FRESH_COPY,
                ) from exc
            group = read_dataset(stream, False, True, stop_when=_behind_the_meta_group)
            meta = FileMetaDataset(group)
            start = 144 + int(meta.get("FileMetaInformationGroupLength", 0))
            kind = str(meta.get("MediaStorageSOPClassUID", ""))
            syntax = str(meta.get("TransferSyntaxUID", ""))
        if kind == DICOMDIR:
            raise ImageError(
                "this is a DICOMDIR, a medium's list of files, and no image",
                fix="give the folder that it lies in: the images are below it",
            )
        stream.seek(0)
        if syntax != DEFLATED:
            yield stream
            return
        stream.seek(start)
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        head, plain = DicomBytesIO(), io.BytesIO()
        plain.write(b"\0" * 128 + b"DICM")
        with foreign():
            write_file_meta_info(head, meta, enforce_standard=False)
            plain.write(head.getvalue())
            _inflate(stream, plain)
        plain.seek(0)
        yield plain


def _inflate(stream: BinaryIO, plain: BinaryIO) -> None:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    while block := stream.read(1 << 16):
        while block:
            plain.write(inflate.decompress(block, 1 << 20))
            block = inflate.unconsumed_tail
            if plain.tell() > LARGEST_DEFLATED:
                raise ImageError(
                    "the deflated DICOM file becomes larger than 512 MiB",
                    fix="have the archive send it as Explicit VR Little Endian",
                )


def read_header(stream: BinaryIO, only: Sequence[str] | None = None) -> FileDataset:
    """The dataset up to the pixel data, where `stream` stands afterwards.

    `only` are the elements that it has, unset: all. Long ones stay in the file.
    Raises `ImageError` for a damaged one.
    """
    import pydicom

    with foreign():
        dataset = pydicom.dcmread(
            stream,
            defer_size=LARGEST_ELEMENT,
            stop_before_pixels=True,
            specific_tags=None if only is None else list(only),
        )
        dataset.fileobj_type = _bounded  # what opens the file again for an element left in it
        return dataset


def patient_of(path: Path) -> str:
    """The Patient ID of a file, empty where there is none: to keep a patient's images together.

    It is never shown nor written. Raises `ImageError`, which names the file, for a damaged one.
    """
    try:
        with opened(path) as stream, foreign():
            found = read_header(stream, only=["PatientID"])
            return str(found.get("PatientID") or "").strip()
    except ImageError as exc:
        raise ImageError(exc.what, where=path, fix=exc.fix) from exc


def record_of(dataset: Any) -> DicomHeader:
    """What records may hold of `dataset`; raises `ImageError` where it has no image's elements."""
    with foreign():
        missing = [key for key in ("Rows", "Columns", "SOPClassUID") if not dataset.get(key)]
        if missing:
            raise ImageError(
                f"the DICOM file holds no image: {' and '.join(missing)} missing or zero",
                fix="give a file with pixels",
            )
        return DicomHeader(
            sop_class_uid=_matching(UID, dataset.SOPClassUID),
            sop_instance_uid=_matching(UID, dataset.get("SOPInstanceUID")),
            modality=code(dataset.get("Modality")),
            photometric=code(dataset.get("PhotometricInterpretation")),
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
        )


def code(value: Any) -> str:
    """A code string of the standard, or `unknown`: nothing else of a header is quoted."""
    return _matching(_CODE, value)


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    text = str(value if value is not None else "").strip()
    return text if pattern.match(text) else "unknown"
