"""Two processes train what one would; process 0 speaks for all; who dies is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.commands import launch
from safetensors.torch import load_file

from lorkd_deploy import cli, load_bundle
from lorkd_deploy.run import exclusive
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.batches.sampler import MixedSampler
from lorkd_deploy.training.processes import TIMEOUT
from tests.tiny_recipe import write_recipe
from tests.training import ten_steps

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
HERE = ["--standalone", "--nproc-per-node=2"]
HELD = {"TINY_HOLD": "4", "TINY_HOLD_RANK": "1"}  # rank 1 stops training, until it is killed
SLOW_MACHINE = 600  # s


def start(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """`torchrun` with two processes, on the CPU, and these environment variables."""
    return launched(*HERE, *arguments, **variables)


def launched(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """`torchrun`, on the CPU, with these arguments and environment variables."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                                "CUDA_VISIBLE_DEVICES": ""} | variables  # fmt: skip
    return subprocess.Popen(
        [*TORCHRUN, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; one that doesn't end is ended, with its ranks."""
    with ended(process):
        out, err = process.communicate(timeout=SLOW_MACHINE)
    return process.returncode, out, err


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever fails in the block leaves neither `process` nor its ranks behind."""
    try:
        yield
    except BaseException:
        if process.poll() is None:
            for rank in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    rank.kill()
            process.kill()
            process.communicate()
        raise


def torchrun(*arguments: str | Path) -> tuple[str, str]:
    """Stdout and stderr of a run that has to succeed."""
    code, out, err = finish(start(*arguments))
    assert code == 0, err
    return out, err


def test_those_ten_steps_have_tasks_absent_here_and_absent_altogether() -> None:
    spec = ten_steps.recipe().train
    sampler = MixedSampler([48, 32, 16], spec.batch_size, spec.temperature, 3, ten_steps.STEPS)
    altogether, on_one = 0, 0
    for step in range(ten_steps.STEPS):
        draw = sampler[step]
        parts = [draw.part(np.arange(i, 3, 2)) for i in range(2)]
        for task, indices in enumerate(draw.indices):
            own = [part.indices[task] for part in parts]
            np.testing.assert_array_equal(np.sort(np.concatenate(own)), np.sort(indices))
            altogether += not len(indices)
            on_one += len(indices) > 0 and min(len(mine) for mine in own) == 0
    assert altogether and on_one


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"epochs": 2, "batch_size": 16, "lr": 0.01, "checkpoint_minutes": 0}
    folder = tmp_path_factory.mktemp("recipe")
    backbone = {"architecture": "tests.tiny_backbone:backbone"}
    return write_recipe(
        folder / "tiny.yaml",
        train=train,
        teacher=backbone | {"train": train | {"epochs": 1}},
        student=backbone,
    )


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and student that nothing has interrupted, by two machines: a launcher each, which
    meet at an address, and an `--out` each, of which the first one's is used.
    """
    folder = tmp_path_factory.mktemp("whole")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    machines = [
        launched(*meeting, "--node-rank", str(node), "-m", "lorkd_deploy", "decompose", recipe,
                 "--out", folder / str(node), "--json")
        for node in range(2)
    ]  # fmt: skip
    with ended(machines[0]), ended(machines[1]):
        (code, out, err), (other_code, other_out, other_err) = map(finish, machines)
    assert (code, other_code) == (0, 0), err + other_err
    assert json.loads(out)["bundle"] == str(folder / "0" / "bundle")
    assert json.loads((folder / "0/history/teacher.json").read_text())["steps"] == 6
    assert err.count("step 6: score") == 2, "of teacher and student"
    assert "BatchNorm layers use the statistics of each process's own share" in err
    assert (other_out, "score" in other_err) == ("", False), "only the first process speaks"
    assert not (folder / "1").exists()
    return folder / "0"


@pytest.fixture(scope="module")
def taught(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, as it was before its student was trained."""
    run = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("bundle", "bundle.json", "cache"))
    return run


@pytest.fixture(scope="module")
def stepped(recipe: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two have learnt from the same batches; then the two have added a
    department to `whole`, in `grown`.
    """
    folder = tmp_path_factory.mktemp("steps")
    more = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = {"source": "phantom", "name": "tissue", "train": 48, "val": 16, "test": 24}
    more["departments"].append({"name": "ward-c", "tasks": [{"name": "tissue", "data": data}]})
    (folder / "more.yaml").write_text(yaml.safe_dump(more), encoding="utf-8")
    grow = ["decompose", folder / "more.yaml", "--from", whole, "--add-department", "ward-c"]
    torchrun(
        ten_steps.__file__, folder, *grow, "--out", folder / "grown", "--set", "train.epochs=1"
    )
    ten_steps.run(folder)
    return folder


@pytest.mark.parametrize("student", ten_steps.STUDENTS)
def test_ten_steps_of_two_processes_are_those_of_one(stepped: Path, student: str) -> None:
    """With LayerNorm, and with BatchNorms whose statistics are over all processes; the losses
    and the scores on the validation images, of which each process has computed a part, too.
    """
    one, two = (load_file(stepped / student / f"{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9, msg=name)
    moved = [k for k in one if k.endswith(".B") and one[k].abs().max() > 1e-3]
    assert moved, "the experts have learnt nothing"
    assert all(0 < float(one[f"figures/auc/{task}"]) < 1 for task in ("cells", "xray", "fundus"))


def test_killed_is_named_and_resumed_equals_two_machines_uninterrupted(
    recipe: Path, taught: Path, whole: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(taught, killed)
    process = start("-m", "lorkd_deploy", "decompose", recipe, "--out", killed, **HELD)
    with ended(process):
        first, victim = _ranks(process, killed / "checkpoints" / "decompose")
        victim.send_signal(signal.SIGKILL)
        psutil.wait_procs([first], timeout=TIMEOUT)
        assert not first.is_running(), "the broken connection told nothing"
        code, _, err = finish(process)
    assert code != 0
    assert "rank 0: error: rank 1 has died" in err
    assert "--resume" in err
    assert f"Signal 9 (SIGKILL) received by PID {victim.pid}" in err, "torchrun's own words"
    assert not (killed / "bundle").exists()

    resume = ["-m", "lorkd_deploy", "decompose", recipe, "--out", killed, "--resume", "--json"]
    assert json.loads(torchrun(*resume)[0])["bundle"] == str(killed / "bundle")
    assert _weights(killed) == _weights(whole)


def test_one_that_hangs_is_named_within_the_timeout(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    process = start("-m", "lorkd_deploy", "decompose", recipe, "--out", run, **HELD,
                    LORKD_RANK_TIMEOUT="20")  # fmt: skip
    with ended(process):
        first, second = _ranks(process, run / "checkpoints" / "decompose")
        second.suspend()
        gone, _ = psutil.wait_procs([first], timeout=TIMEOUT)
        assert gone == [first], "not the timeout that was asked for"
        with suppress(psutil.NoSuchProcess):
            second.kill()  # torchrun does, half a minute later
        code, _, err = finish(process)
    assert code != 0
    assert "rank 0: error: rank 1 has died, or did not answer for 20 s" in err
    assert not (run / "bundle").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a dead parent on Linux")
def test_a_killed_launcher_leaves_no_process_that_holds_the_run(
    recipe: Path, tmp_path: Path
) -> None:
    run, alone = tmp_path / "run", ["--set", "transfer.kind=none"]  # without a teacher
    process = start("-m", "lorkd_deploy", "decompose", recipe, "--out", run, *alone, **HELD)
    with ended(process):
        ranks = _ranks(process, run / "checkpoints" / "decompose")
        process.kill()
        _, left = psutil.wait_procs(ranks, timeout=TIMEOUT / 2)  # before they miss one another
        for rank in left:
            rank.kill()
        assert left == []
        assert "error: the training was asked to stop (SIGTERM)" in finish(process)[2]
    assert not (run / "bundle").exists()
    with exclusive(run, "a test"):  # nobody holds it any more
        pass


def test_a_department_more_leaves_the_others_as_they_are(whole: Path, stepped: Path) -> None:
    before, after = _weights(whole), _weights(stepped / "grown")
    assert {name: after.get(name) for name in before} == before
    assert "bundle/experts/tissue.safetensors" in after
    moved = load_bundle(stepped / "grown").expert("tissue")["5.B"]
    assert np.abs(moved).max() > 0, "no gradient reached the expert"


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`accelerate launch` on the CPU; what it would start runs in this process instead."""
    code = -1

    class Started:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            nonlocal code
            assert command[1:3] == ["-m", "lorkd_deploy"]
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            code = cli.main(command[3:])

        def wait(self) -> None:
            self.returncode = 0

    def run(processes: int, *arguments: str | Path) -> int:
        options = ["--cpu", "--num_machines", "1", "--num_processes", str(processes)]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lorkd_deploy"]
        given = launch.launch_command_parser().parse_args([*options, *map(str, arguments)])
        launch.launch_command(given)
        return code

    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Started))
    return run


def test_accelerate_with_one_process_makes_the_bundle(
    accelerated: Callable[..., int],
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = ["--set", "train.epochs=1", "--set", "transfer.kind=none"]
    code = accelerated(1, "decompose", recipe, "--out", tmp_path / "run", *short, "--json")
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["steps"] == 6
    assert [task.name for task in load_bundle(tmp_path / "run").manifest.tasks] == [
        "cells", "xray", "fundus"
    ]  # fmt: skip


def test_accelerate_that_starts_one_of_two_is_an_error(
    accelerated: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accelerated(2, "demo", "--out", tmp_path / "run") not in (-1, 0)
    said = " ".join(capsys.readouterr().err.split())
    assert "error: accelerate was asked for several processes" in said
    assert "torchrun --nproc-per-node" in said
    assert not (tmp_path / "run").exists()


def _ranks(process: subprocess.Popen[str], saved: Path) -> list[psutil.Process]:
    """The ranks of `process`, once there is more than one checkpoint in `saved`."""
    end = time.monotonic() + SLOW_MACHINE
    while len(list(saved.glob("step-*/state.json"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    children = psutil.Process(process.pid).children()
    by_rank = {child.environ().get("RANK"): child for child in children}
    return [by_rank["0"], by_rank["1"]]


def _weights(run: Path) -> dict[str, str]:
    files = sorted((run / "bundle").rglob("*.safetensors"))
    return {str(file.relative_to(run)): sha256_file(file) for file in files}
