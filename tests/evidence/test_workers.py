"""Trainings in processes of their own: failures are told, lost processes replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tiny_recipe import tiny_recipe

from lorkd_deploy.errors import UsageError
from lorkd_deploy.evidence.attempt import Call, Outcome, attempt
from lorkd_deploy.evidence.plan import Training, parse_variants, trainings
from lorkd_deploy.evidence.train import ANSWERS, RECORD, Trained, call_of
from lorkd_deploy.evidence.workers import LOST, Cluster, on_this_machine
from lorkd_deploy.recipe import parse_recipe

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (TESTS, TESTS.parent):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def planned(methods: str, seeds: int = 1, **train: object) -> list[Training]:
    raw = tiny_recipe(transfer={"kind": "none"})
    raw["train"] = raw["train"] | {"epochs": 1} | train
    recipe = parse_recipe(yaml.safe_load(yaml.safe_dump(raw)), where="test")
    return list(trainings(recipe, parse_variants(methods), seeds, (48, 32, 16)))


def test_two_workers_do_all_trainings_and_a_failure_is_told(tmp_path: Path) -> None:
    asked = planned("mtl,experts", 2)
    broken = asked[0].model_copy(
        update={"seed": 7, "recipe": asked[0].recipe | {"data_folder": None, "departments": []}}
    )
    calls = [call_of(training, tmp_path) for training in (*asked, broken)]
    found = {outcome.name: outcome for outcome in on_this_machine(calls, 2)}
    assert len(found) == 5
    assert "departments" in (found[broken.folder].failed or "")
    for training in asked:
        outcome = found[training.folder]
        assert outcome.failed is None
        assert Trained.model_validate(outcome.done).training == training
        assert (tmp_path / training.folder / ANSWERS).exists()


def test_a_fault_of_our_own_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("nothing to divide by")

    (training,) = planned("mtl")
    call = call_of(training, tmp_path)
    monkeypatch.setattr("lorkd_deploy.evidence.train.train", broken)
    outcome = Outcome.model_validate(attempt(call.model_dump(mode="json")))
    assert "ZeroDivisionError: nothing to divide by (test_workers.py" in (outcome.failed or "")


def children() -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "attempt" in line]


def killed_after_its_first_checkpoint(folder: Path, times: int) -> None:
    for _ in range(times):
        known: set[int] = set()
        while not (list(folder.glob("checkpoints/*/*")) and set(children()) - known):
            time.sleep(0.01)
        for child in children():
            os.kill(child, signal.SIGKILL)
            known.add(child)


def test_a_lost_process_is_replaced_and_its_training_continued(tmp_path: Path) -> None:
    from threading import Thread

    (training,) = planned("mtl", epochs=40, checkpoint_minutes=0)
    folder = tmp_path / training.folder
    killer = Thread(target=killed_after_its_first_checkpoint, args=(folder, 1))
    killer.start()
    (outcome,) = on_this_machine([call_of(training, tmp_path)], 1)
    killer.join()
    assert outcome.failed is None
    alone = tmp_path / "alone"
    (twin,) = on_this_machine([call_of(training, alone)], 1)
    assert twin.done == outcome.done | {"seconds": twin.done["seconds"]}
    whole = (alone / training.folder / ANSWERS).read_bytes()
    assert (folder / ANSWERS).read_bytes() == whole
    assert (folder / RECORD).exists()


def test_a_training_that_always_loses_its_process_is_told_and_the_next_one_done(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    dying = Call(name="dying", function="tests.evidence.calls:die", given={}, folder=folder)
    fine = Call(name="fine", function="tests.evidence.calls:give", given={"a": 1}, folder=folder)
    found = {o.name: o for o in on_this_machine([dying, fine], 1)}
    assert f"ended by signal 9, {LOST} times" in (found["dying"].failed or "")
    assert (tmp_path / "begun").read_text() == "x" * LOST
    assert found["fine"].done == {"a": 1}


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.3:8786", "tls://host:8786", "host:8786", "tcp://host.example:8786"],
)
def test_a_scheduler_that_anybody_can_reach_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="only its users can reach"):
        Cluster(address)


def test_tls_with_its_files_and_the_loopback_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    assert Cluster("tls://host:8786", file, file, file).ca == file
    assert Cluster("tcp://127.0.0.1:8786").ca is None
    assert Cluster("tcp://[::1]:8786").ca is None
    with pytest.raises(UsageError):
        Cluster("tcp://127.0.0.1:8786", ca=file)
