"""The folders of a listener: what was accepted, answered, sent and given up lies on the disk.

    OUT/incoming/    accepted images that have no answer yet; `.NAME` isn't accepted yet
    OUT/sr/          the answers, DICOM SR; OUT/fhir/ as FHIR, where that was asked for
    OUT/unsent/      the answers that the archive hasn't taken yet
    OUT/failed/      accepted images that could not be answered, each with its reason in a .txt

A step is one rename, so that a kill at any moment leaves each image in one of them.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from lorkd_deploy.storage import write_atomic


class Inbox:
    """The folders below `out`; makes them, and clears away what was never accepted."""

    def __init__(self, out: Path) -> None:
        self.incoming, self.sr, self.fhir = out / "incoming", out / "sr", out / "fhir"
        self.unsent, self.failed = out / "unsent", out / "failed"
        for folder in (self.incoming, self.sr, self.unsent, self.failed):
            folder.mkdir(parents=True, exist_ok=True)
        for left in self.incoming.glob(".*.part"):
            left.unlink()

    def draft(self, data: bytes) -> Path:
        """Write a received file to the disk, not accepted yet; raises `OSError`."""
        path = self.incoming / f".{uuid.uuid4().hex}.part"
        try:
            with path.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def accept(self, draft: Path) -> Path:
        """From now on the file is this listener's to answer, after a loss of power too."""
        path = self.incoming / f"{draft.name[1:].removesuffix('.part')}.dcm"
        draft.rename(path)
        _flush(self.incoming)
        return path

    def waiting(self) -> list[Path]:
        """Accepted images without an answer, the oldest first."""
        found = self.incoming.glob("[!.]*.dcm")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def answered(self, name: str) -> bool:
        """Whether the answer of this name has been written (and perhaps sent) before."""
        return (self.sr / f"{name}.dcm").exists()

    def answer(self, name: str, report: bytes, fhir: bytes | None, *, send: bool) -> None:
        """Keep an answer; `send` puts it among those for the archive."""
        if send:
            write_atomic(self.unsent / f"{name}.dcm", report)
        if fhir is not None:
            write_atomic(self.fhir / f"{name}.json", fhir)
        write_atomic(self.sr / f"{name}.dcm", report)

    def done(self, path: Path) -> None:
        """The image has its answers: the archive has it, and no copy stays here."""
        _flush(self.sr)
        path.unlink()

    def give_up(self, path: Path, why: str) -> None:
        """Put an image that can't be answered aside, with the reason."""
        write_atomic(self.failed / f"{path.stem}.txt", why.encode() + b"\n")
        path.rename(self.failed / path.name)


def _flush(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
