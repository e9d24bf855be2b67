"""Trainings on a real Dask cluster of two workers, under mutual TLS, one of which is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tiny_recipe import tiny_recipe

from lorkd_deploy.evidence.plan import Training, parse_variants, trainings
from lorkd_deploy.evidence.train import ANSWERS, call_of, train
from lorkd_deploy.evidence.workers import Cluster, on_cluster
from lorkd_deploy.recipe import parse_recipe

distributed = pytest.importorskip("distributed", reason="extra `cluster` is not installed")
TESTS = Path(__file__).parents[1]


def planned(epochs: int) -> list[Training]:
    raw = tiny_recipe(transfer={"kind": "none"})
    raw["train"] |= {"epochs": epochs, "checkpoint_minutes": 0}
    recipe = parse_recipe(raw, where="test")
    return list(trainings(recipe, parse_variants("mtl,experts"), 1, (48, 32, 16)))


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority, and a certificate and key by it, as one pair for both sides."""
    made = distributed.Security.temporary()
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    folder.mkdir(exist_ok=True)
    for file, text in zip(
        files, (made.tls_ca_file, made.tls_client_cert, made.tls_client_key), strict=True
    ):
        file.write_text(text)
    return files


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Cluster]]:
    """Two worker processes with a thread each, and how a study reaches them."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    ca, cert, key = map(str, certificates(tmp_path / "tls"))
    sides = {f"tls_{s}_{k}": f for s in ("scheduler", "worker", "client")
             for k, f in (("cert", cert), ("key", key))}  # fmt: skip
    security = distributed.Security(tls_ca_file=ca, require_encryption=True, **sides)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, security=security, dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        yield cluster, Cluster(address, Path(ca), Path(cert), Path(key))


def kill_who_does(training: Training, folder: Path, cluster: Any) -> None:
    """The worker that has the training, as soon as it left a checkpoint."""
    while not list(folder.glob("checkpoints/*/*")):
        time.sleep(0.01)
    (busy,) = [
        worker
        for worker in list(cluster.scheduler.workers.values())
        if training.folder in {str(task.key) for task in worker.processing}
    ]
    with distributed.Client(cluster) as client:
        (pid,) = client.run(os.getpid, workers=[busy.address]).values()
    os.kill(pid, signal.SIGKILL)


def test_a_killed_workers_training_is_resumed(local: tuple[Any, Cluster], tmp_path: Path) -> None:
    cluster, reached = local
    assert reached.scheduler.startswith("tls://127.0.0.1:")
    asked, study = planned(40), tmp_path / "study"
    killer = Thread(
        target=kill_who_does, args=(asked[0], study / asked[0].folder, cluster), daemon=True
    )
    killer.start()
    calls = [call_of(training, study) for training in asked]
    failed = {outcome.name: outcome.failed for outcome in on_cluster(calls, reached)}
    killer.join()
    assert failed == dict.fromkeys(training.folder for training in asked)
    alone = tmp_path / "alone"
    train(asked[0].model_dump(mode="json"), str(alone))
    whole = (alone / asked[0].folder / ANSWERS).read_bytes()
    assert (study / asked[0].folder / ANSWERS).read_bytes() == whole
