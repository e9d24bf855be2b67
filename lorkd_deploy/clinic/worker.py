"""Answers accepted images one after the other, and sends the answers on."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.clinic.answered import answered
from lorkd_deploy.clinic.fhir import fhir_bundle
from lorkd_deploy.clinic.inbox import Inbox
from lorkd_deploy.clinic.sr import structured_report
from lorkd_deploy.deploy.answers.answering import Recorder
from lorkd_deploy.deploy.answers.classifier import Classifier, Prepared
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.errors import ImageError, LorkdError

AGAIN = 5.0  # s until what failed by the machine's or the network's fault is tried again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """Where answers are sent: `AET@HOST:PORT`."""

    title: str
    host: str
    port: int


class Worker:
    """The engines of a department at work on an inbox.

    `audit` takes each answer before it is kept; after a kill between the two it has it twice. An
    error that nobody expected sets `stop`, and is `fault` then.
    """

    def __init__(
        self,
        inbox: Inbox,
        classifiers: Sequence[Classifier],
        *,
        fhir: bool = False,
        to: Peer | None = None,
        audit: Recorder | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.inbox, self.classifiers, self.fhir, self.to = inbox, classifiers, fhir, to
        self.audit, self.stop = audit, stop or threading.Event()
        self.fault: Exception | None = None
        self.accepted, self.stopping = threading.Event(), threading.Event()
        self.count = 0

    def prepared(self, path: Path) -> list[tuple[Classifier, Prepared]]:
        """The tasks that take an image, with it; raises the last `ImageError` where none does."""
        made: dict[DicomRules, Prepared | ImageError] = {}  # tasks of the same rules share it
        found, fault = [], None
        for classifier in self.classifiers:
            if classifier.rules not in made:
                try:
                    made[classifier.rules] = classifier.prepare(path)
                except ImageError as exc:
                    made[classifier.rules] = exc
            image = made[classifier.rules]
            if isinstance(image, ImageError):
                fault = image
            else:
                found.append((classifier, image))
        if not found:
            raise fault or ImageError("no task takes this image")
        return found

    def answer(self, path: Path) -> None:
        """Answer one accepted image by every task that takes it."""
        began = time.perf_counter()
        images = self.prepared(path)
        reading = time.perf_counter() - began
        for classifier, image in images:
            began = time.perf_counter()
            batch = classifier.artifact.batch(image.pixels[None])
            (prediction,) = classifier.answers([image], batch)
            made = answered(prediction, classifier.artifact, classifier.rules)
            name = made.uid("sr")
            if self.inbox.answered(name):  # before a kill, or it was sent twice
                continue
            if self.audit is not None:
                ms = 1e3 * (reading + time.perf_counter() - began)
                classifier.record(self.audit, [prediction], ms)
            bundle = fhir_bundle(made) if self.fhir else None
            self.inbox.answer(name, structured_report(made), bundle, send=self.to is not None)
            self.count += 1
            log.info("%s: %s answered", made.source.SOPInstanceUID, classifier.task.name)
        self.inbox.done(path)

    def run(self, step: Callable[[], None]) -> None:
        """`work` or `send` in a thread of its own; what they don't expect ends the listener."""
        try:
            step()
        except Exception as exc:
            self.fault = exc
            self.stop.set()

    def raise_fault(self) -> None:
        """Raise what ended the listener, if anything did, in a sentence.

        Of an error that nobody foresaw only its kind and place are said: its text, or a traceback,
        may quote a patient's header.
        """
        if self.fault is None:
            return
        if isinstance(self.fault, LorkdError):
            raise self.fault
        last = traceback.extract_tb(self.fault.__traceback__)[-1]
        raise LorkdError(
            f"the listener ended by an error of its own ({type(self.fault).__name__} in "
            f"{Path(last.filename).name}, line {last.lineno}); nothing is lost",
            where=self.inbox.incoming,
            fix="start it again; if it ends again, move the oldest image out of this folder, and "
            "report this line",
        ) from self.fault

    def work(self) -> None:
        """Answer what is accepted until `stopping`.

        An image that can't be answered is put aside; what the disk or the log doesn't take is
        tried again.
        """
        while True:
            self.accepted.clear()
            for path in self.inbox.waiting():
                if self.stopping.is_set():
                    return
                try:
                    self.answer(path)
                except ImageError as exc:
                    log.error("an image could not be answered: %s", exc.what)
                    self.inbox.give_up(path, exc.what)
                except (OSError, LorkdError) as exc:
                    cause = exc.__cause__ if isinstance(exc, LorkdError) else exc
                    if not isinstance(cause, OSError):
                        raise
                    log.error("tried again in %g s: %s", AGAIN, cause.strerror)
                    if self.stopping.wait(AGAIN):
                        return
            if self.stopping.is_set():
                return
            self.accepted.wait(AGAIN)

    def send(self) -> None:
        """Send answers to the archive until `stopping`, each until it is taken."""
        while self.to is not None and not self.stopping.is_set():
            waiting = sorted(self.inbox.unsent.glob("[!.]*.dcm"))
            if waiting and not send_all(waiting, self.to):
                log.warning("%s doesn't take the answers; tried again in %g s", self.to, AGAIN)
                self.stopping.wait(AGAIN)
            self.stopping.wait(0.2)


def send_all(files: Sequence[Path], peer: Peer) -> bool:
    """Send SR files by C-STORE and delete those that are taken; whether all were."""
    import pydicom
    from pynetdicom import AE
    from pynetdicom.sop_class import ComprehensiveSRStorage  # type: ignore[attr-defined]

    entity = AE(ae_title="LORKD")
    entity.add_requested_context(ComprehensiveSRStorage)
    association = entity.associate(peer.host, peer.port, ae_title=peer.title)
    if not association.is_established:
        return False
    try:
        for file in files:
            if not association.is_established:
                return False
            status = association.send_c_store(pydicom.dcmread(file))
            # Warnings (B…) are taken too.
            if not status or (status.Status != 0 and status.Status >> 12 != 0xB):
                return False
            file.unlink()
    except (OSError, RuntimeError, ValueError) as exc:  # the association ended, or takes no SR
        log.warning("an answer could not be sent: %s", type(exc).__name__)
        return False
    finally:
        association.release()
    return True
