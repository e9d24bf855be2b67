"""`lorkd listen`: receives images by C-STORE, and answers each by a department's engines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.clinic.inbox import Inbox
from lorkd_deploy.clinic.receiving import entity, on_store
from lorkd_deploy.clinic.reports import require_packages
from lorkd_deploy.clinic.worker import Peer, Worker
from lorkd_deploy.deploy.answers.answering import Recorder
from lorkd_deploy.deploy.answers.classifier import Classifier
from lorkd_deploy.errors import LorkdError, UsageError, unknown_name
from lorkd_deploy.run import Run, open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import exclusive

BIND = "127.0.0.1:11112"
TITLE = "LORKD"
log = logging.getLogger(__name__)


class Listened(Part):
    """How many answers were written until the end, and how many of them the archive hasn't got."""

    answers: int
    unsent: int


def listen(
    run: str | Path,
    out: str | Path,
    *,
    department: str | None = None,
    bind: str = BIND,
    title: str = TITLE,
    callers: Sequence[str] = (),
    to: str | None = None,
    fhir: bool = False,
    target: str = "onnx",
    precision: str = "fp32",
    audit: Recorder | None = None,
    stop: threading.Event | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> Listened:
    """Receive DICOM images at `bind` until `stop` is set, and answer each into the folder `out`.

    An image is accepted only when its pixels were read and it is on the disk; what was accepted is
    answered after a kill too. `callers` are the AE titles that may send (none: all), `title` is the
    one they have to call. Each answer is an SR in `out`/sr (`inbox.py` has the folders), sent on to
    the archive `to`, `AET@HOST:PORT`. `audit`, an `AuditLog`, keeps every answer. `ready` is told
    the port.

    Raises `UsageError` for an unknown department or an address that isn't one, `ArtifactError`
    for an engine that is missing or damaged, `LorkdError` where the port is taken, or for an
    error that nobody expected: what was accepted is on the disk then too.
    """
    require_packages()
    host, port = _address(bind, "--bind")
    peer = None if to is None else _peer(to)
    for name in (title, *callers):
        _title(name)
    opened = open_run(run)
    bundle = load_bundle(opened.bundle)
    tasks = _tasks(opened, bundle, department)
    stop = stop or threading.Event()
    with ExitStack() as stack:
        stack.enter_context(exclusive(Path(out), "listened"))
        engines = [
            stack.enter_context(
                Classifier(run, task, target=target, precision=precision, bundle=bundle)
            )
            for task in tasks
        ]
        _warn_of_any(engines)
        inbox = Inbox(Path(out))
        worker = Worker(inbox, engines, fhir=fhir, to=peer, audit=audit, stop=stop)
        server = _serve(worker, host, port, title, callers)
        steps = (worker.work, worker.send)
        threads = [threading.Thread(target=worker.run, args=(one,)) for one in steps]
        for thread in threads:
            thread.start()
        try:
            ready(server.socket.getsockname()[1])
            stop.wait()
        finally:
            server.shutdown()
            worker.stopping.set()
            worker.accepted.set()
            for thread in threads:
                thread.join()
        worker.raise_fault()
        return Listened(answers=worker.count, unsent=len(list(inbox.unsent.glob("[!.]*.dcm"))))


def _serve(worker: Worker, host: str, port: int, title: str, callers: Sequence[str]) -> Any:
    from pynetdicom import evt

    handlers = [(evt.EVT_C_STORE, on_store, [worker])]
    try:
        return entity(title, callers).start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as exc:
        raise LorkdError(
            f"{host}:{port} can't be listened on: {exc.strerror}",
            fix="choose another --bind HOST:PORT, or end what listens there",
        ) from exc


def _tasks(run: Run, bundle: Bundle, department: str | None) -> tuple[str, ...]:
    departments = bundle.manifest.departments
    if department is None and len(departments) == 1:
        (department,) = departments
    if department is None:
        raise UsageError(
            "the run has several departments, and whose images these are isn't said",
            where=run.path,
            fix=f"give --department, one of {', '.join(departments)}",
        )
    if department not in departments:
        raise unknown_name("department", department, departments, where=run.path)
    return departments[department]


def _address(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UsageError(
            f"{option} {text!r} is not of the form HOST:PORT",
            fix=f"for example {BIND}; 0.0.0.0 in front of the port listens on every address",
        )
    return host.strip("[]"), int(port)


def _peer(text: str) -> Peer:
    title, at, address = text.partition("@")
    if not at:
        raise UsageError(f"--to {text!r} is not of the form AET@HOST:PORT")
    return Peer(_title(title), *_address(address, "--to"))


def _title(text: str) -> str:
    if not 0 < len(text.strip()) <= 16 or not text.isascii() or "\\" in text:
        raise UsageError(
            f"{text!r} is no AE title", fix="one has 1 to 16 ASCII characters, without a backslash"
        )
    return text


def _warn_of_any(engines: Sequence[Classifier]) -> None:
    for engine in engines:
        if not engine.rules.modality:
            log.warning(
                "task %s names no modality: it answers images of any; write data.dicom.modality "
                "in its recipe",
                engine.task.name,
            )
