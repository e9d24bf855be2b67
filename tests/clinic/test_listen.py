"""Images by C-STORE from dcmtk's `storescu`, answers to dcmtk's `storescp`, on the loopback."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.clinic.audit import AuditLog, entries
from lorkd_deploy.clinic.inbox import Inbox
from lorkd_deploy.clinic.listen import Listened, listen
from lorkd_deploy.clinic.worker import Peer, Worker, send_all
from lorkd_deploy.errors import LorkdError, UsageError
from tests.dicom.files import PATIENT, dataset, saved

SENDERS, EACH = 4, 50
RAMP = np.arange(256).reshape(16, 16)
# `lorkd` with one of the department's two tasks: half the reports, of a tenth of a second each.
ONE_TASK = """
import sys
from lorkd_deploy.cli import main
from lorkd_deploy.clinic import listen
listen._tasks = lambda *_: ("eye",)
sys.exit(main(sys.argv[1:]))
"""
WAIT = 120  # s for what takes a second: machines are busy


@pytest.fixture(autouse=True)
def _dcmtk() -> None:
    if shutil.which("storescu") is None:
        pytest.skip("dcmtk is not installed: apt-get install dcmtk")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scan(file: Path, seed: int = 0) -> str:
    """Write an image and give its SOP instance UID."""
    made = dataset((RAMP + seed) % 256, stored=8)
    saved(made, file)
    return str(made.SOPInstanceUID)


@contextmanager
def listening(run: Path, out: Path, **options: Any) -> Iterator[int]:
    """`listen` in a thread of this process; gives its port."""
    stop, ports, port = threading.Event(), [], threading.Event()

    def ready(number: int) -> None:
        ports.append(number)
        port.set()

    result: list[Listened] = []
    bind = f"127.0.0.1:{options.pop('port', 0)}"
    thread = threading.Thread(
        target=lambda: result.append(listen(run, out, bind=bind, stop=stop, ready=ready, **options))
    )
    thread.start()
    try:
        assert port.wait(WAIT)
        yield ports[0]
    finally:
        stop.set()
        thread.join(WAIT)
    assert result, "the listener ended by an error"


@contextmanager
def archive(folder: Path, *options: str) -> Iterator[int]:
    """dcmtk's storescp."""
    folder.mkdir()
    port = free_port()
    with subprocess.Popen(
        ["storescp", *options, "-aet", "PACS", "-od", str(folder), str(port)],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: reachable(port))
            yield port
        finally:
            process.terminate()


def reachable(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def until(done: Any, every: float = 0.05, wait: float = WAIT) -> None:
    deadline = time.monotonic() + wait
    while not done():
        assert time.monotonic() < deadline
        time.sleep(every)


def count(folder: Path) -> int:
    return len(list(folder.glob("[!.]*")))


def store(port: int, *files: Path, called: str = "LORKD", calling: str = "CT1") -> list[Path]:
    """Send by storescu and give the files that were answered with success."""
    words = ["storescu", "-v", "-aet", calling, "-aec", called, "127.0.0.1", str(port)]
    said = subprocess.run(
        [*words, *map(str, files)], capture_output=True, text=True, check=False, timeout=WAIT
    )
    taken, current = [], None
    for line in (said.stdout + said.stderr).splitlines():
        if "Sending file: " in line:
            current = Path(line.split("Sending file: ")[1])
        elif "Store Response (Success)" in line and current is not None:
            taken.append(current)
    return taken


def sources(folder: Path) -> list[str]:
    """The SOP instance UIDs of the images that the reports in a folder are about."""
    import pydicom

    found = []
    for file in folder.iterdir():
        evidence = pydicom.dcmread(file).CurrentRequestedProcedureEvidenceSequence[0]
        series = evidence.ReferencedSeriesSequence[0]
        found.append(str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID))
    return found


def test_an_image_is_answered_by_every_task_and_sent_on(department: Path, tmp_path: Path) -> None:
    uid = scan(tmp_path / "a.dcm")
    log = tmp_path / "answers.jsonl"
    with (
        archive(tmp_path / "pacs") as pacs,
        listening(
            department,
            tmp_path / "out",
            to=f"PACS@127.0.0.1:{pacs}",
            fhir=True,
            audit=AuditLog(log),
        ) as port,
    ):
        assert store(port, tmp_path / "a.dcm") == [tmp_path / "a.dcm"]
        until(lambda: len(list((tmp_path / "pacs").iterdir())) == 2)
        until(lambda: not any((tmp_path / "out" / "unsent").iterdir()))
        until(lambda: not any((tmp_path / "out" / "incoming").iterdir()))
    assert sources(tmp_path / "pacs") == [uid, uid] == sources(tmp_path / "out" / "sr")
    assert len(list((tmp_path / "out" / "fhir").iterdir())) == 2
    seen = entries(log)
    assert [one.task for one in seen] == ["eye", "findings"]
    assert [one.engine for one in seen] == ["clinic/eye/onnx-fp32", "clinic/findings/onnx-fp32"]
    assert len({one.image for one in seen}) == 1 and re.fullmatch("[0-9a-f]{64}", seen[0].image)
    assert all(one.ms > 0 and sum(one.probabilities.values()) > 0 for one in seen)
    assert not [word for word in (PATIENT.split("^")[0], "PLANTED") if word in log.read_text()]


def test_who_may_send_and_whom_they_call(department: Path, tmp_path: Path) -> None:
    scan(tmp_path / "a.dcm")
    with listening(department, tmp_path / "out", callers=["CT1"], title="EYES") as port:
        assert not store(port, tmp_path / "a.dcm", called="OTHER")
        assert not store(port, tmp_path / "a.dcm", called="EYES", calling="CT2")
        assert store(port, tmp_path / "a.dcm", called="EYES")


def test_a_bad_file_and_a_full_disk_are_refused(
    department: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    good, bad = tmp_path / "good.dcm", tmp_path / "bad.dcm"
    scan(good)
    made = dataset(RAMP, stored=8)
    made.PixelData = made.PixelData[:-20]
    saved(made, bad)
    with listening(department, tmp_path / "out") as port:
        assert store(port, bad) == []
        assert statuses(port, bad) == [0xC000]

        def full(self: Inbox, data: bytes) -> Path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(Inbox, "draft", full)
            assert statuses(port, good) == [0xA700]
        assert statuses(port, good) == [0x0000]
        until(lambda: len(list((tmp_path / "out" / "sr").iterdir())) == 2)
    assert not any((tmp_path / "out" / "failed").iterdir())
    assert "No space left" in caplog.text
    assert PATIENT.split("^", maxsplit=1)[0] not in caplog.text


def test_an_archive_that_aborts_is_tried_again(department: Path, tmp_path: Path) -> None:
    """dcmtk's storescp, which drops the association at every image, then one that doesn't."""
    scan(tmp_path / "a.dcm")
    with listening(department, tmp_path / "out", to="PACS@127.0.0.1:9") as port:
        assert store(port, tmp_path / "a.dcm")
        until(lambda: count(tmp_path / "out" / "unsent") == 2)
    waiting = sorted((tmp_path / "out" / "unsent").iterdir())
    with archive(tmp_path / "broken", "--abort-after") as pacs:
        assert not send_all(waiting, Peer("PACS", "127.0.0.1", pacs))
    assert sorted((tmp_path / "out" / "unsent").iterdir()) == waiting
    with archive(tmp_path / "pacs") as pacs:
        assert send_all(waiting, Peer("PACS", "127.0.0.1", pacs))
    assert count(tmp_path / "pacs") == 2 and not count(tmp_path / "out" / "unsent")


def test_a_disk_that_is_really_full(
    department: Path, tmp_path: Path, small_disk: Callable[[str], Path], caplog: Any
) -> None:
    """What doesn't fit is refused and no part of it stays; what was accepted is answered later."""
    files = [tmp_path / f"{number}.dcm" for number in range(4)]
    uids = [scan(file, number) for number, file in enumerate(files)]
    disk = small_disk("192k")
    out, filler = disk / "out", disk / "filler"
    with listening(department, out) as port:
        assert statuses(port, files[0]) == [0x0000]
        until(lambda: count(out / "sr") == 2 and not count(out / "incoming"))
        fill(filler, leave=0)
        assert statuses(port, files[1]) == [0xA700]
        assert not any((out / "incoming").iterdir())
        fill(filler, leave=8192)  # for the image, and not for its two answers
        assert statuses(port, files[2]) == [0x0000]
        until(lambda: "tried again in 5 s: No space left" in caplog.text)
        assert count(out / "incoming") == 1
        filler.unlink()
        until(lambda: count(out / "sr") == 4 and not count(out / "incoming"))
        assert statuses(port, files[3]) == [0x0000]
        until(lambda: count(out / "sr") == 6)
    assert set(sources(out / "sr")) == {uids[0], uids[2], uids[3]}
    assert not any((out / "failed").iterdir())


def fill(file: Path, leave: int) -> None:
    """Make `file` take all that is free on its disk but for `leave` bytes."""
    file.unlink(missing_ok=True)
    free = os.statvfs(file.parent)
    file.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


def test_an_error_that_nobody_expected_ends_the_listener_and_loses_nothing(
    department: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    uid, out = scan(tmp_path / "a.dcm"), tmp_path / "out"
    ports: list[int] = []
    ended: list[Exception] = []

    def broken(self: Worker, path: Path) -> None:
        raise KeyError(PATIENT)

    def heard() -> None:
        try:
            listen(department, out, bind="127.0.0.1:0", ready=ports.append)
        except LorkdError as exc:
            ended.append(exc)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "answer", broken)
        thread = threading.Thread(target=heard)
        thread.start()
        until(lambda: ports)
        assert statuses(ports[0], tmp_path / "a.dcm") == [0x0000]
        thread.join(WAIT)
    assert not reachable(ports[0])
    (said,) = map(str, ended)
    assert re.search(r"an error of its own \(KeyError in test_listen\.py, line \d+\)", said)
    assert "nothing is lost" in said and str(out / "incoming") in said
    assert PATIENT.split("^", maxsplit=1)[0] not in said + caplog.text
    assert count(out / "incoming") == 1
    with listening(department, out):
        until(lambda: count(out / "sr") == 2)
    assert sources(out / "sr") == [uid, uid]


def statuses(port: int, *files: Path) -> list[int]:
    """What a sender of pynetdicom is answered."""
    import pydicom
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", port, ae_title="LORKD")
    assert association.is_established
    try:
        return [association.send_c_store(pydicom.dcmread(file)).Status for file in files]
    finally:
        association.release()


def test_addresses_and_departments(department: Path, tmp_path: Path) -> None:
    for bind in ("11112", ":11112", "here:port"):
        with pytest.raises(UsageError, match="is not of the form HOST:PORT"):
            listen(department, tmp_path / "out", bind=bind)
    with pytest.raises(UsageError, match="no department is called 'ward'"):
        listen(department, tmp_path / "out", department="ward")
    with pytest.raises(UsageError, match="is no AE title"):
        listen(department, tmp_path / "out", title="a title that is too long")


@pytest.mark.slow
def test_nothing_is_lost_by_a_kill(department: Path, tmp_path: Path) -> None:
    """200 images of 4 senders, the listener killed in the middle: one answer each in the archive.

    What was accepted before the kill isn't sent again.
    """
    files = [
        [tmp_path / "scans" / f"{sender}-{number}.dcm" for number in range(EACH)]
        for sender in range(SENDERS)
    ]
    sent = {
        scan(file, 7 * number + 61 * sender)
        for sender, own in enumerate(files)
        for number, file in enumerate(own)
    }
    assert len(sent) == SENDERS * EACH
    port = free_port()
    out = tmp_path / "out"

    def start(pacs: int) -> subprocess.Popen[bytes]:
        words = ["listen", str(department), "--out", str(out), "--bind", f"127.0.0.1:{port}"]
        words += ["--to", f"PACS@127.0.0.1:{pacs}", "--quiet"]
        process = subprocess.Popen([sys.executable, "-c", ONE_TASK, *words])
        started.append(process)
        until(lambda: reachable(port))
        return process

    started: list[subprocess.Popen[bytes]] = []
    try:
        with archive(tmp_path / "pacs") as pacs, ThreadPoolExecutor(SENDERS) as pool:
            process = start(pacs)
            running = [pool.submit(store, port, *own) for own in files]
            # Accepting is much faster than answering: few of the accepted have an answer now.
            until(lambda: count(out / "incoming") >= 40, every=0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            taken = [one.result() for one in running]
            assert 0 < sum(map(len, taken)) < SENDERS * EACH
            process = start(pacs)
            left = [
                [f for f in own if f not in done] for own, done in zip(files, taken, strict=True)
            ]
            again = list(pool.map(lambda own: store(port, *own), [own for own in left if own]))
            assert sum(map(len, again)) == sum(map(len, left))
            waiting = (out / "incoming", out / "unsent")
            until(lambda: not any(map(count, waiting)), every=0.5, wait=600)
            process.terminate()
            assert process.wait() == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
    # An answer that was sent when the kill came may be sent again, under the same UID.
    assert set(sources(tmp_path / "pacs")) == sent
    assert count(tmp_path / "pacs") == count(out / "sr") == SENDERS * EACH
    assert not any((out / "failed").iterdir())
