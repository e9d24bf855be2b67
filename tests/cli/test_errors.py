"""Every error is a message with an exit code; a bug keeps its traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lorkd_deploy
from lorkd_deploy import cli, recipe
from lorkd_deploy.cli.shared.faults import system_fault
from lorkd_deploy.errors import GateError

LORKD = [sys.executable, "-m", "lorkd_deploy"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LORKD, *arguments], capture_output=True, text=True, check=False)


def failing(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """Make the next command fail with `fault` in the library."""

    def fail(*_: object) -> object:
        raise fault

    monkeypatch.setattr(recipe, "load_recipe", fail)


@pytest.mark.parametrize(
    ("arguments", "code", "what", "fix"),
    [
        (["exprt"], 2, "'exprt'", "lorkd --help"),
        (["export"], 2, "RUN", "lorkd export --help"),
        (["export", "r", "--targt", "onnx"], 2, "--targt", "lorkd export --help"),
        (["export", "r", "--option", "device"], 2, "KEY=VALUE", ""),
        (["fuse", "r", "--task", "t"], 2, "--out", "lorkd fuse --help"),
        (["benchmark", "r", "--rounds", "0"], 2, "--rounds", "lorkd benchmark --help"),
        (["recipe", "lst"], 2, "'lst'", "lorkd recipe --help"),
        (["recipe", "show", "medmnist-smal"], 2, "'medmnist-smal'", "'medmnist-small'"),
        (["recipe", "validate", "dmeo"], 2, "'dmeo'", "'demo'"),
        (["recipe", "validate", "demo", "--set", "seed=-1"], 1, "seed: ", "lorkd recipe show"),
        (["recipe", "validate", "demo", "--set", "seed"], 1, "key.path=value", ""),
    ],
)
def test_a_users_fault_is_explained(
    arguments: list[str], code: int, what: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert what in shown.err
    assert fix in shown.err
    assert "Traceback" not in shown.err

    assert cli.main([*arguments, "--json"]) == code
    fault = json.loads(capsys.readouterr().out)["error"]
    assert what in fault["what"]
    assert fix in (fault["fix"] or "")
    assert fault["exit_code"] == code


def test_a_gate_is_exit_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, GateError("parity failed", where="lungs/xray", fix="export again"))
    assert cli.main(["recipe", "validate", "demo"]) == 3
    assert capsys.readouterr().err == (
        "error: parity failed\n  where: lungs/xray\n  to do: export again\n"
    )


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "not permitted"),
        (errno.EROFS, "only be read"),
        (errno.EISDIR, "Is a directory"),
    ],
)
def test_a_fault_of_the_system_names_the_file(
    number: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, OSError(number, "Is a directory", "runs/small"))
    assert cli.main(["recipe", "validate", "demo"]) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert "where: runs/small" in shown


def test_a_system_fault_without_a_number_keeps_its_words() -> None:
    assert system_fault(OSError("the host is not reachable")).what == "the host is not reachable"


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the first is how Python runs by itself
@pytest.mark.parametrize("options", [[], ["--json"]])  # whose errors go to stdout too
def test_a_full_disk_under_stdout_is_explained(options: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*LORKD, "recipe", "list", *options],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full\n")
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried …"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_used_up_memory_is_explained(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, fault)
    assert cli.main(["recipe", "validate", "demo"]) == 1
    shown = capsys.readouterr().err
    assert "not enough memory" in shown
    assert "train.batch_size" in shown
    assert "--auto-batch" in shown


def test_a_reader_that_has_gone_is_no_error() -> None:
    shell = f"{sys.executable} -m lorkd_deploy recipe show medmnist --json | head -n 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert cli.main(["recipe", "validate", "demo"]) == 1
    shown = capsys.readouterr().err
    assert "torch is not installed" in shown
    assert "pip install 'lorkd-deploy[train]'" in shown


def test_a_library_that_there_is_no_memory_to_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ImportError("libz.so.1: failed to map segment from shared object"))
    assert cli.main(["recipe", "validate", "demo"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "not enough memory to load a library: libz.so.1" in shown and "ulimit -v" in shown


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("a bug"),
        ImportError("a bug"),
        RuntimeError("a bug"),
        ModuleNotFoundError("No module named 'x'", name="x"),
    ],
)
def test_a_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, bug)
    with pytest.raises(type(bug), match=str(bug)):
        cli.main(["recipe", "validate", "demo"])


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipe", "validate", "demo"], "starts again"),
        (["decompose", "demo", "--out", "run"], "--resume continues from it"),
    ],
)
def test_ctrl_c_is_exit_130_and_a_sentence(
    arguments: list[str],
    says: str,
    above: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # Below typer, which has its own idea of Ctrl-C, and above it, where it may come too.
    failing(monkeypatch, KeyboardInterrupt())
    # Into the module's own names: looked up as an attribute, it would be imported, with torch.
    monkeypatch.setitem(vars(lorkd_deploy), "decompose", stop)
    if above:
        monkeypatch.setattr(cli, "command_line", lambda _: stop)
    assert cli.main(arguments) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.lstrip().startswith("stopped: ")  # typer ends the terminal's ^C line
    assert says in shown.err
