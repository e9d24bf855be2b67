"""Who does trainings: processes on this machine, or a Dask cluster's workers."""

from __future__ import annotations

import ipaddress
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from lorkd_deploy.errors import RuntimeUnavailableError, UsageError
from lorkd_deploy.evidence.attempt import Call, Outcome, attempt
from lorkd_deploy.progress import Progress, bar

log = logging.getLogger(__name__)
PATIENCE = "20s"  # for a scheduler to answer
LOST = 2  # times that a training may lose its worker before it counts as failed


@dataclass(frozen=True)
class Cluster:
    """A Dask scheduler and, for `tls://`, the files by which both sides know each other.

    Raises `UsageError` for an address that anybody could connect to: workers run what they are
    sent, so it is mutual TLS, or plain TCP on this machine's loopback.
    """

    scheduler: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        address = urlsplit(self.scheduler)
        files = (self.ca, self.certificate, self.key)
        if address.scheme == "tls" and all(files):
            return
        if address.scheme == "tcp" and _is_loopback(address.hostname) and not any(files):
            return
        raise UsageError(
            f"{self.scheduler} is no address of a scheduler that only its users can reach",
            fix="give --scheduler tls://HOST:PORT with --tls-ca, --tls-cert and --tls-key, or "
            "tcp://127.0.0.1:PORT of this machine",
        )


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def collected(
    outcomes: Iterable[Outcome], progress: Progress, *, known: int, left: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By training what its function gave, and why one failed; a bar shows them as they come.

    `left` are those that are done now, `known` those that were done before.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with bar(progress, "trainings", known + left) as shown:
        shown.advance(known)
        for outcome in outcomes:
            if outcome.done is not None:
                done[outcome.name] = outcome.done
            else:
                failed[outcome.name] = outcome.failed or ""
                log.warning("%s failed: %s", outcome.name, outcome.failed)
            shown.advance(1, failed=str(len(failed)))
    return done, failed


def on_this_machine(calls: Sequence[Call], workers: int) -> Iterator[Outcome]:
    """Each training's outcome, as it ends; `workers` processes with a thread each.

    A process that is lost is replaced, and its training continued from the last checkpoint.
    """
    free: SimpleQueue[_Worker] = SimpleQueue()
    started = [_Worker() for _ in range(min(workers, len(calls)))]
    for worker in started:
        free.put(worker)

    def one(call: Call) -> Outcome:
        worker = free.get()
        try:
            return worker.outcome(call)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(max(1, len(started)))
    try:
        for future in as_completed([pool.submit(one, call) for call in calls]):
            yield future.result()
    finally:
        for worker in started:
            worker.stop()
        pool.shutdown(cancel_futures=True)


class _Worker:
    """A process that does one training after another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def outcome(self, call: Call) -> Outcome:
        code = 0
        for _ in range(LOST):
            if self._stopped:
                break
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(call.model_dump_json() + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if answer:
                return Outcome.model_validate_json(answer)
            code, self._process = process.wait(), None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = f"its process ended by {how}, {LOST} times (a signal 9 often is too little memory)"
        return Outcome(name=call.name, failed=why)

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "lorkd_deploy.evidence.attempt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one_thread,
        )


def on_cluster(calls: Sequence[Call], cluster: Cluster) -> Iterator[Outcome]:
    """The same on a cluster whose workers see the calls' folders under the same paths.

    Raises `RuntimeUnavailableError` where Dask isn't installed or its scheduler doesn't answer.
    """
    try:
        dask = import_module("distributed")
    except ImportError as exc:
        raise RuntimeUnavailableError(
            "a cluster needs Dask, which is not installed", fix="install lorkd-deploy[cluster]"
        ) from exc
    try:
        client = dask.Client(cluster.scheduler, security=_security(cluster, dask), timeout=PATIENCE)
    except (OSError, TimeoutError) as exc:
        raise RuntimeUnavailableError(
            f"the scheduler doesn't answer: {exc}",
            where=cluster.scheduler,
            fix="start it by `dask scheduler`, with the same certificates",
        ) from exc
    with client:
        futures = [
            client.submit(attempt, call.model_dump(mode="json"), key=call.name, pure=False)
            for call in calls
        ]
        for future in dask.as_completed(futures):
            if future.status == "finished":
                yield Outcome.model_validate(future.result())
            else:  # its workers were lost more often than the cluster allows
                why = f"{type(future.exception()).__name__}: {future.exception()}"
                yield Outcome(name=future.key, failed=why)


def _security(cluster: Cluster, dask: Any) -> Any:
    if cluster.ca is None:
        return None
    return dask.Security(
        tls_ca_file=str(cluster.ca),
        tls_client_cert=str(cluster.certificate),
        tls_client_key=str(cluster.key),
        require_encryption=True,
    )
