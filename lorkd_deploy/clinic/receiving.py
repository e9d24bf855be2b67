"""The DICOM receiver: C-STORE of images, by pynetdicom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from lorkd_deploy.clinic.worker import Worker
from lorkd_deploy.dicom.syntaxes import DECODERS, NATIVE
from lorkd_deploy.errors import LorkdError

# Part 4, annex B.2.3 and C.
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
LONGEST_COMMENT = 64  # characters, VR LO
# A failing handler would be logged with its traceback, which may quote the header.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
log = logging.getLogger(__name__)


def entity(title: str, callers: Sequence[str]) -> Any:
    """An application entity that takes images by `title`, of `callers` alone if there are any."""
    from pynetdicom import AE, StoragePresentationContexts
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    made = AE(ae_title=title)
    made.require_called_aet = True
    made.require_calling_aet = list(callers)
    made.maximum_associations = 32
    syntaxes = sorted(NATIVE) + [
        uid for uid, (_, module) in DECODERS.items() if find_spec(module) is not None
    ]
    for context in StoragePresentationContexts:
        if context.abstract_syntax is not None and "Image" in context.abstract_syntax.name:
            made.add_supported_context(context.abstract_syntax, syntaxes)
    made.add_supported_context(Verification)
    return made


def on_store(event: Any, worker: Worker) -> Any:
    """Accept or refuse one image. Accepted is what is read, and on the disk, before the answer."""
    try:
        draft = worker.inbox.draft(event.encoded_dataset())
        try:
            worker.prepared(draft)
            worker.inbox.accept(draft)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        log.error("an image was refused: %s", exc.strerror)
        return _status(OUT_OF_RESOURCES, exc.strerror or "no space")
    except LorkdError as exc:
        log.warning("an image was refused: %s", exc.what)
        return _status(CANNOT_UNDERSTAND, exc.what)
    worker.accepted.set()
    return SUCCESS


def _status(code: int, why: str) -> Any:
    from pydicom.dataset import Dataset

    status = Dataset()
    status.Status = code
    status.ErrorComment = why.encode("ascii", "replace").decode()[:LONGEST_COMMENT]
    return status
